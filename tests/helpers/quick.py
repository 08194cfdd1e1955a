"""The tests of `pytest -m quick`: a cross-section that exercises every module.

`conftest.py` gives them their mark. An entry is a test file, with all of its tests, or one
test, written `file::test`. `test_quick.py` holds that no module of the program is left out.
"""

# What exercises each module that is not a package's docstring alone.
OF_MODULE = {
    "checkpoint":
        "test_released_checkpoints.py::test_a_step_from_it_gives_the_loss_of_the_formulas",
    "common.device": "common/test_device.py",
    "common.errors": "common/test_options.py",
    "common.files": "common/test_files.py",
    "common.flags": "common/test_options.py",
    "common.folders": "common/test_folders.py",
    "common.hub": "encoders/test_hub.py::test_a_hub_that_does_not_answer_is_given_up",
    "common.interrupt":
        "common/test_start.py::test_ctrl_c_is_an_exception_while_a_command_works_and_none_afterwards",
    "common.locks": "common/test_locks.py",
    "common.memory": "common/test_memory.py::test_no_file_is_called_damaged_for_want_of_memory",
    "common.options": "common/test_options.py",
    "common.packages":
        "common/test_start.py::test_a_file_of_the_program_that_is_missing_is_named",
    "common.parser": "common/test_options.py",
    "common.pools": "common/test_pools.py",
    "common.presets": "common/test_options.py",
    "common.processes":
        "common/test_processes.py::test_gathered_rows_have_the_gradient_of_the_whole",
    "common.ranks": "common/test_processes.py::test_gathered_rows_have_the_gradient_of_the_whole",
    "common.temporary": "common/test_temporary.py",
    "common.start":
        "common/test_start.py::test_a_file_of_the_program_that_is_missing_is_named",
    "common.terminal": "common/test_terminal.py",
    "common.version": "figures/test_report_facts.py::test_facts_survive_the_file",
    "common.weights": "test_export.py::test_dtypes_are_those_of_the_flag",
    "data": "test_data.py::test_a_loaded_split_has_its_photos_and_captions",
    "encoders.chunks": "training/test_chunks.py::test_one_chunk_after_the_other_goes_back",
    "encoders.families": "encoders/test_refusals.py",
    "encoders.folder": "test_export.py::test_a_loaded_model_is_saved_as_the_same_files",
    "encoders.hub": "encoders/test_hub.py::test_a_hub_name_has_its_form_and_is_no_folder",
    "encoders.image_processors": "inputs/test_fitting.py::test_pixels_are_those_of_timm",
    "encoders.loading": "encoders/test_loading.py",
    "encoders.memory_trial":
        "encoders/test_memory_trial.py::test_the_largest_operation_is_counted_with_its_arguments",
    "encoders.open_clip_halves": "encoders/test_open_clip.py",
    "encoders.open_clip_pairs": "encoders/test_open_clip.py",
    "encoders.pair_folder":
        "encoders/test_pair_folder.py::test_a_projection_makes_it_a_folder_of_ours",
    "encoders.pair_models":
        "encoders/test_pair_models.py::test_captions_reach_the_tokenizer_as_they_are",
    "encoders.pairs":
        "encoders/test_pair_models.py::test_embeddings_and_logits_are_the_pairs_own",
    "encoders.lora":
        "encoders/test_families.py::test_a_convolutional_encoder_takes_no_adapters",
    "encoders.pooling": "test_model.py::test_bert_features_are_the_mean_over_real_tokens",
    "encoders.preparation": "test_export.py::test_the_tokenizer_cleans_as_training_does",
    "encoders.processors": "encoders/test_processors.py",
    "encoders.released":
        "test_released_checkpoints.py::test_a_step_from_it_gives_the_loss_of_the_formulas",
    "encoders.sentence": "test_export.py::test_sentence_transformers_gives_our_vectors",
    "encoders.stored": "encoders/test_stored.py::test_a_flag_replaces_what_is_stored",
    "encoders.tokenizer_checks":
        "encoders/test_tokenizer_checks.py::test_a_tokenizer_is_stored_as_it_was_after_its_trial",
    "evaluation": "test_evaluation.py",
    "experiments.dose":
        "experiments/test_dose.py::test_the_plan_has_every_loss_and_oracle_at_every_dose_and_seed",
    "experiments.flags": "experiments/test_uses.py::test_a_slip_of_the_command_is_told_in_a_line",
    "experiments.likely_options":
        "experiments/test_uses.py::test_a_slip_of_the_command_is_told_in_a_line",
    "experiments.one_run":
        "experiments/test_dose.py::test_a_stopped_experiment_ends_its_runs_and_goes_on",
    "experiments.plan":
        "experiments/test_dose.py::test_the_plan_has_every_loss_and_oracle_at_every_dose_and_seed",
    "experiments.pool":
        "experiments/test_dose.py::test_runs_side_by_side_are_the_same_as_one_after_the_other",
    "experiments.posterior": "experiments/test_posterior.py",
    "experiments.summary":
        "experiments/test_dose.py::test_differences_are_paired_by_seed_and_intervals_are_students",
    "experiments.teacher": "experiments/test_teacher.py::test_a_mistake_is_told_in_one_line",
    "experiments.teacher_plan":
        "experiments/test_teacher.py::test_every_run_is_a_command_that_train_takes",
    "experiments.teacher_run":
        "experiments/test_teacher.py::test_as_many_are_left_out_among_the_equally_hard",
    "experiments.teacher_summary":
        "experiments/test_teacher.py::test_differences_are_paired_by_seed_with_students_interval",
    "experiments.uses": "experiments/test_uses.py::test_what_is_likely_is_that_of_a_slow_loop",
    "export": "test_export.py::test_the_released_model_is_the_same_to_the_bit",
    "figures.flags": "figures/test_opening.py",
    "figures.galleries": "figures/test_galleries.py",
    "figures.opening": "figures/test_opening.py",
    "figures.pages": "figures/test_sheets.py",
    "figures.picks": "figures/test_picks.py",
    "figures.plots": "figures/test_plots.py::test_bars_show_the_counts",
    "figures.report": "figures/test_report_facts.py::test_facts_survive_the_file",
    "figures.sheets": "figures/test_sheets.py",
    "figures.tensorboard": "test_first_meeting.py::test_the_longest_lines_fit",
    "fne_loss": "test_fne_loss.py",
    "inputs.arrow": "inputs/test_arrow.py",
    "inputs.augmentation": "inputs/test_augmentation.py",
    "inputs.captions": "inputs/test_captions.py",
    "inputs.fitting": "inputs/test_fitting.py::test_the_published_fit_is_the_published_resize",
    "inputs.loader": "inputs/test_loader.py",
    "inputs.photos": "inputs/test_photos.py",
    "inputs.records": "inputs/test_records.py",
    "inputs.shapes": "inputs/test_shapes.py::test_parser_and_loop_on_captions_judged_by_hand",
    "inputs.shard_index":
        "inputs/test_shard_index.py::test_pairs_follow_the_shards_in_their_order",
    "inputs.shards": "inputs/test_shards.py",
    "inputs.sources": "inputs/test_split_files.py",
    "inputs.splits": "inputs/test_split_files.py",
    "memory_bank": "test_memory_bank.py",
    "metrics.embeddings": "metrics/test_embeddings.py",
    "metrics.evidence": "metrics/test_evidence.py",
    "metrics.facts": "figures/test_report_facts.py::test_facts_survive_the_file",
    "metrics.judgements": "metrics/test_judgements.py",
    "metrics.retrieval":
        "metrics/test_retrieval.py::test_ranks_and_metrics_are_those_of_the_released_program",
    "metrics.teacher": "metrics/test_teacher.py::test_the_prior_is_a_hundredth",
    "metrics.true_matches":
        "metrics/test_true_matches.py::test_metrics_over_all_matches_are_those_of_a_loop",
    "model": "test_model.py::test_vit_features_are_the_mean_over_all_tokens",
    "negative_sampling": "test_fne_loss.py",
    "scripts.check_data": "scripts/test_check_data.py",
    "scripts.find_matches":
        "scripts/test_find_matches.py::test_pairs_are_those_of_a_slow_loop",
    "scripts.gpu_check": "scripts/test_gpu_check.py",
    "scripts.make_shapes": "scripts/test_make_shapes.py",
    "scripts.split": "scripts/test_split.py",
    "search": "test_search.py",
    "searching.clusters": "searching/test_clusters.py",
    "searching.encoding": "searching/test_encoding.py::test_a_huge_photo_is_a_permanent_fault",
    "searching.exact": "searching/test_exact.py",
    "searching.flags": "test_search.py",
    "searching.index": "searching/test_index.py",
    "searching.models": "searching/test_models.py",
    "searching.page": "searching/test_page.py",
    "searching.queries": "searching/test_queries.py",
    "searching.results": "searching/test_results.py",
    "searching.scan": "searching/test_scan.py",
    "searching.server":
        "searching/test_server.py::test_a_query_that_says_nothing_is_told_in_a_line",
    "searching.update": "searching/test_update.py",
    "train": "test_train.py::test_every_way_of_training_runs_and_can_be_tested",
    "training.bad_photos": "training/test_bad_photos.py::test_too_many_broken_photos_stop_the_run",
    "training.clock": "training/test_clock.py",
    "training.exchange":
        "test_train.py::test_every_way_of_training_runs_and_can_be_tested",
    "training.facts":
        "test_train.py::test_every_way_of_training_runs_and_can_be_tested",
    "training.features":
        "training/test_features.py::test_they_depend_on_each_photos_size_time_and_name",
    "training.guard": "training/test_guard.py::test_a_few_are_told_and_counted",
    "training.monitor": "training/test_monitor.py",
    "training.objectives":
        "test_train.py::test_every_way_of_training_runs_and_can_be_tested",
    "training.objectives.base":
        "test_train.py::test_every_way_of_training_runs_and_can_be_tested",
    "training.objectives.fne":
        "test_train.py::test_every_way_of_training_runs_and_can_be_tested",
    "training.objectives.infonce":
        "test_one_step.py::test_the_infonce_loss_of_a_step_is_the_oracles",
    "training.objectives.options": "common/test_options.py",
    "training.objectives.sigmoid": "test_fne_loss.py",
    "training.objectives.triplet":
        "test_one_step.py::test_the_triplet_loss_of_a_step_is_the_oracles",
    "training.optimizer":
        "training/test_optimizer.py::test_groups_are_those_of_each_parameters_module",
    "training.options": "common/test_options.py",
    "training.outline":
        "test_train.py::test_every_way_of_training_runs_and_can_be_tested",
    "training.random_streams":
        "test_train.py::test_every_way_of_training_runs_and_can_be_tested",
    "training.restore": "training/test_restore.py::test_weights_that_are_not_finite",
    "training.run": "training/test_run.py",
    "training.schedule": "training/test_schedule.py",
    "training.signals":
        "training/test_signals.py::test_a_signal_waits_until_the_run_may_stop",
    "training.storage": "training/test_folders.py::test_permission_is_not_damage",
    "training.teaching":
        "teacher/test_runs.py::test_a_mistake_is_told_in_one_line_before_training",
    "training.true_matches": "training/test_monitor.py",
    "training.zero_shot": "training/test_zero_shot.py::test_similarities_are_those_of_a_loop",
    "vocab.build_vocab": "test_vocab.py::test_a_size_that_no_vocabulary_has",
}
# Numbers of the released program, formulas against the oracle, and what else is quick.
FURTHER = ("test_train.py::test_bad_flags_end_in_one_line", "test_data.py::test_collator",
           "test_model.py::test_a_frozen_encoder_gets_no_gradient",
           "test_model.py::test_a_caption_has_the_same_embedding_in_a_batch_and_alone",
           "test_golden.py", "metrics/test_retrieval.py::test_ranks_by_hand",
           "test_one_step.py::test_the_fne_loss_of_a_step_is_the_oracles_on_what_was_drawn",
           "test_fidelity.py", "test_statistics.py", "test_momentum.py",
           "encoders/test_caption_tokens.py", "inputs/test_formats.py", "inputs/test_tables.py",
           "test_sampling.py::test_posterior_is_the_oracles_in_the_middle_and_in_both_tails",
           "test_own_loop.py::test_the_loop_of_the_readme_trains",
           "test_house.py::test_no_arrow_is_forbidden", "test_quick.py")
QUICK = {*OF_MODULE.values(), *FURTHER}
QUICK_FILES = {entry.partition("::")[0] for entry in QUICK}


def is_quick(path: str, function: str) -> bool:
    """Return whether a test is among them.

    Args:
        path: its file, relative to `tests`, with forward slashes.
        function: its name, without parameters.
    """
    return path in QUICK or f"{path}::{function}" in QUICK
