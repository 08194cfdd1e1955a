"use strict";

const byId = (name) => document.getElementById(name);
const [form, text, drop, photo, preview, photoName, remove, status, results, end] = [
  "search", "text", "drop", "photo", "preview", "photo_name", "remove", "status", "results", "end",
].map(byId);
const invitation = photoName.textContent;
const mostBytes = 2 ** 26;  // of a photo; search.py takes no more
let chosen = null;  // the photo that is searched by
let asked = 0;  // searches; an answer to an earlier one than the last comes too late
let found = null;  // {search, count} of the results that are shown
let loading = false;

function tell(message, isError = false) {
  status.textContent = message;
  status.classList.toggle("error", isError);
}

async function fetchJson(address, options) {
  let answer;
  try {
    answer = await fetch(address, options);
  } catch {
    throw new Error("search.py does not answer: it may have been stopped");
  }
  const content = await answer.json();
  if (!answer.ok) throw new Error(content.error);
  return content;
}

function choose(file) {
  if (preview.src) URL.revokeObjectURL(preview.src);
  chosen = file;
  photo.value = "";
  photoName.textContent = file ? file.name : invitation;
  remove.hidden = preview.hidden = !file;
  if (file) preview.src = URL.createObjectURL(file);
  else preview.removeAttribute("src");
}

function figureOf(result, rank) {
  const make = (name, properties, ...children) => {
    const element = Object.assign(document.createElement(name), properties);
    element.append(...children);
    return element;
  };
  let score = `s\u00a0${result.score.toFixed(3)}`;
  if (result.posterior !== null) score += `\u2002P\u00a0${result.posterior.toPrecision(2)}`;
  const image = make("img", {loading: "lazy", src: `thumbnail/${result.row}`, alt: result.name});
  const figure = make(
    "figure", {},
    make("div", {className: "heading"}, make("b", {}, String(rank)),
      make("span", {className: "soft"}, score)),
    make("a", {href: `photo/${result.row}`, target: "_blank", rel: "noopener"}, image),
    make("figcaption", {title: result.name}, result.name.split("/").pop()));
  image.addEventListener("error", () => figure.classList.add("gone"));
  return figure;
}

function show(more) {
  const shown = results.children.length;
  results.append(...more.map((result, index) => figureOf(result, shown + index + 1)));
}

async function search() {
  const number = ++asked;
  tell("Searching\u2026");
  try {
    if (!text.value.trim() && !chosen) throw new Error("Say what is to be seen, or drop a photo.");
    if (chosen && chosen.size > mostBytes) throw new Error("This file is too large for a photo.");
    const query = new URLSearchParams({text: text.value.trim()});
    const answer = await fetchJson(`search?${query}`, {method: "POST", body: chosen ?? ""});
    if (number !== asked) return;
    found = {search: answer.search, count: answer.count};
    results.replaceChildren();
    show(answer.results);
    tell(`${answer.count.toLocaleString()} photos, the best first.`);
    scrolled();
  } catch (error) {
    if (number !== asked) return;
    found = null;
    results.replaceChildren();
    tell(error.message, true);
  }
}

async function scrolled() {
  const isNear = end.getBoundingClientRect().top < 2 * window.innerHeight;
  const shown = results.children.length;
  if (loading || !found || shown >= found.count || !isNear) return;
  loading = true;
  const number = asked;
  try {
    const query = new URLSearchParams({search: found.search, start: shown});
    const answer = await fetchJson(`results?${query}`);
    if (number === asked) show(answer.results);
  } catch (error) {
    if (number === asked) {
      tell(error.message, true);
      found = null;
    }
  }
  loading = false;
  scrolled();
}

form.addEventListener("submit", (event) => {
  event.preventDefault();
  search();
});
photo.addEventListener("change", () => {
  if (!photo.files.length) return;
  choose(photo.files[0]);
  search();
});
remove.addEventListener("click", () => {
  choose(null);
  if (text.value.trim()) search();
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  drop.classList.add("over");
});
document.addEventListener("dragleave", () => drop.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  drop.classList.remove("over");
  const file = event.dataTransfer.files[0];
  if (file) {
    choose(file);
    search();
  }
});
for (const name of ["scroll", "resize"]) window.addEventListener(name, scrolled, {passive: true});
