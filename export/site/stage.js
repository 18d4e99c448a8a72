// The picture and its translation, one over the other, with a handle between them.

const box = document.getElementById("stage"), handle = document.getElementById("handle");

export const stage = {
  get state() {
    return box.dataset.state; // opening, empty, shown, generated
  },
  set state(value) {
    box.dataset.state = value;
  },
  /** Make room for the camera's picture; its first translation comes later. */
  film(width, height) {
    box.style.setProperty("--aspect", width / height);
    document.getElementById("after").width = 0;
    this.state = "shown";
  },
  /** Show a translation over its picture, or a generated picture alone (`before` null). */
  show(before, after) {
    box.style.setProperty("--aspect", after.width / after.height);
    if (before) draw("before", before);
    draw("after", after);
    this.state = before ? "shown" : "generated";
  },
};

function draw(id, { data, width, height }) {
  const canvas = document.getElementById(id);
  [canvas.width, canvas.height] = [width, height];
  canvas.getContext("2d").putImageData(new ImageData(data, width, height), 0, 0);
}

function split(percent) {
  const value = Math.min(100, Math.max(0, percent));
  box.style.setProperty("--split", `${value}%`);
  handle.setAttribute("aria-valuenow", Math.round(value));
}

function follow(event) {
  const { left, width } = box.getBoundingClientRect();
  split((100 * (event.clientX - left)) / width);
}

box.addEventListener("pointerdown", (event) => {
  if (stage.state !== "shown") return;
  box.setPointerCapture(event.pointerId);
  follow(event);
});
box.addEventListener("pointermove", (event) => box.hasPointerCapture(event.pointerId) && follow(event));
handle.addEventListener("keydown", (event) => {
  const now = Number(handle.getAttribute("aria-valuenow"));
  const to = { ArrowLeft: now - 5, ArrowRight: now + 5, Home: 0, End: 100 }[event.key];
  if (to === undefined) return;
  event.preventDefault();
  split(to);
});
