"use strict";
// A stage: one row's pictures on top of each other, and the slider between two of them.

const PICTURES = {
  compare: ["first", "edit"],
  answer: ["first", "edit"],
  overlay: ["edit", "mask"],
  mask: ["mask"],
  error: ["mask"],
  difference: ["first", "edit"],
};
const NOUNS = { first: "original", edit: "edit", mask: "mask" };

/** An element from one of the page's templates. */
function fromTemplate(id) {
  return document.getElementById(id).content.cloneNode(true);
}

/** A stage for the row. `onTap` is called for a click that is no drag; without it the slider jumps there. */
function makeStage(row, onTap) {
  const stage = fromTemplate("stage-template").firstElementChild;
  stage.row = row;
  const frame = stage.querySelector(".frame");
  frame.style.setProperty("--ratio", row.width / row.height);
  // A small picture is judged by its pixels, so they are not smoothed.
  stage.classList.toggle("small", row.width > 1 && row.width <= 160);
  const cut = stage.querySelector(".cut");
  const move = () => frame.style.setProperty("--cut", `${cut.value}%`);
  cut.addEventListener("input", move);
  for (const image of stage.querySelectorAll("img")) {
    image.addEventListener("error", () => {
      image.hidden = true;
      complain(stage, `The ${image.dataset.noun} cannot be read.`);
    });
  }

  let from = null;
  let dragged = false;
  const follow = (event) => {
    const { left, width } = frame.getBoundingClientRect();
    cut.value = (100 * (event.clientX - left)) / width;
    move();
  };
  stage.addEventListener("pointerdown", (event) => {
    if (event.button !== 0) return;
    from = event.clientX;
    dragged = false;
    stage.setPointerCapture(event.pointerId);
  });
  stage.addEventListener("pointermove", (event) => {
    if (from === null) return;
    dragged ||= Math.abs(event.clientX - from) > 4;
    if (dragged) follow(event);
  });
  stage.addEventListener("pointerup", (event) => {
    if (from === null) return;
    from = null;
    if (dragged) return;
    if (onTap) onTap();
    else follow(event);
  });
  stage.addEventListener("pointercancel", () => (from = null));
  return stage;
}

function complain(stage, text) {
  const missing = stage.querySelector(".missing");
  missing.textContent = text;
  stage.classList.add("lacking");
}

/** Shows one view of the row; only its pictures are loaded. */
function dressStage(stage, view, gain) {
  const { row } = stage;
  const paths = {
    first: view === "answer" ? row.answer : row.preview,
    edit: row.shown || row.output,
    mask: view === "error" ? row.error : row.mask,
  };
  const nounOf = (name) => {
    if (name === "first" && view === "answer") return "exact answer";
    return name === "mask" && view === "error" ? "error map" : NOUNS[name];
  };
  // A failure has no edit, so its original is shown, if there is one.
  const wanted = row.failed ? ["first"] : PICTURES[view];
  if (row.failed) paths.first = row.preview;
  const shown = wanted.filter((name) => paths[name]);
  stage.classList.remove("lacking");
  for (const image of stage.querySelectorAll("img")) {
    const name = image.className;
    image.hidden = !shown.includes(name);
    if (image.hidden) continue;
    image.dataset.noun = nounOf(name);
    image.alt = `${image.dataset.noun}: ${row.image || row.id}`;
    if (image.getAttribute("src") !== paths[name]) image.src = paths[name];
    else if (image.complete && !image.naturalWidth) image.dispatchEvent(new Event("error"));
  }
  const lacks = wanted.filter((name) => !paths[name]);
  if (lacks.length) {
    complain(stage, `This row has no ${nounOf(lacks[0])}.`);
  }
  const slides = !row.failed && shown.length === 2 && (view === "compare" || view === "answer");
  stage.dataset.view = row.failed ? "failed" : view;
  stage.classList.toggle("slides", slides);
  stage.style.setProperty("--gain", gain);
  const left = view === "answer" ? "Exact answer" : "Original";
  stage.querySelector(".tag").textContent = left;
  const cut = stage.querySelector(".cut");
  cut.disabled = !slides;
  cut.setAttribute("aria-label", `${left} to the left, edit to the right of, per cent`);
}
