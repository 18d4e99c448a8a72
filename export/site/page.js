// The page: what is asked for, and what is shown. worker.js computes.

import { stage } from "./stage.js";

const at = (id) => document.getElementById(id);
const state = { manifest: null, worker: null, ready: false, reverse: false, name: "", source: null, asked: 0, on: "auto" };

/** Show a line below the picture; with a number from 0 to 1, a bar too. */
function say(text, done = null, bad = false) {
  at("status").textContent = text;
  at("status").classList.toggle("bad", bad);
  at("progress").classList.toggle("idle", done === null);
  if (done !== null) at("progress").value = done;
}

// ── the model ────────────────────────────────────────────────────────────────────────────────────────────────────

async function start() {
  const response = await fetch("./rfp.json", { cache: "no-cache" });
  if (!response.ok) throw new Error(`rfp.json could not be fetched: ${response.status} ${response.statusText}`);
  const manifest = (state.manifest = await response.json());
  describe(manifest);
  at("steps").max = Math.max(50, 2 * manifest.default_steps);
  at("steps").value = at("steps-shown").value = manifest.default_steps;
  const sizes = [1, 2, 4].map((times) => [times * manifest.image_size, `${times * manifest.image_size} px`]);
  if (!manifest.generative) sizes.push(["native", "the picture's own"]);
  at("size").append(...sizes.map(([value, text]) => new Option(text, value)));
  for (const id of ["choose", "film", "direction"]) at(id).hidden = manifest.generative;
  for (const id of ["another", "seed-label"]) at(id).hidden = !manifest.generative;
  open();
}

function describe({ name, domains, generative, image_size, licence, provenance }) {
  document.title = name;
  const about = [`${name}: trained at ${image_size} px`];
  if (licence) about.push(`licence ${licence}`);
  if (provenance) about.push(provenance);
  at("about").textContent = about.join(" · ");
  if (generative) at("title").textContent = domains[1];
  else direct(false);
}

function direct(reverse) {
  state.reverse = reverse;
  const [from, to] = reverse ? [...state.manifest.domains].reverse() : state.manifest.domains;
  at("title").textContent = `${from} → ${to}`;
  at("direction").textContent = `⇄ ${to} → ${from}`;
  at("name-before").textContent = from;
  at("name-after").textContent = to;
}

function open() {
  say("Starting …");
  state.worker?.terminate();
  state.ready = false;
  state.worker = new Worker("./worker.js", { type: "module" });
  state.worker.onmessage = ({ data }) => hear[data.kind]?.(data);
  state.worker.onerror = (event) => say(`The page's worker could not start: ${event.message ?? "see the console"}`, null, true);
  state.worker.postMessage({ kind: "open", manifest: state.manifest, on: state.on });
}

const hear = {
  loading: ({ loaded, total }) => say(loaded < total ? `Fetching the model: ${(loaded / 1e6).toFixed(1)} of ${(total / 1e6).toFixed(1)} MB` : "Starting …", loaded / total),
  open({ device, threads, choice }) {
    state.ready = true;
    at("device-label").hidden = !choice;
    state.device = device === "gpu" ? "GPU (WebGPU)" : `CPU (WebAssembly, ${threads} ${threads === 1 ? "thread" : "threads"})`;
    at("device").value = device;
    say(`Ready, on the ${state.device}.`);
    if (stage.state === "opening") stage.state = "empty";
    if (state.manifest.generative) ask();
    else if (state.source instanceof Blob) take(state.source, state.name);
    else if (state.source) next();
  },
  step({ id, step, steps }) {
    if (id === state.asked && !filming()) say(`Step ${step} of ${steps}`, step / steps);
  },
  run({ id, input, output, seconds }) {
    if (id !== state.asked) return;
    stage.show(input, output);
    at("download").disabled = false;
    say(`${output.width} × ${output.height} px in ${seconds.toFixed(2)} s on the ${state.device}`);
    if (filming()) next();
  },
  failed({ during, id, device, message }) {
    if (during === "run" && id !== state.asked) return;
    if (device === "gpu" && during !== "load") {
      console.warn(`the GPU failed, the CPU takes over: ${message}`);
      state.on = "cpu";
      return open();
    }
    const smaller = during === "run" ? ". A smaller size may help." : "";
    say(`Not done: ${message}${smaller}`, null, true);
    if (filming()) endFilming();
  },
};

/** Ask for the source at hand with the settings as they are; a request under way is overtaken. */
function ask() {
  if (!state.ready || !(state.source || state.manifest.generative)) return;
  const size = at("size").value, id = ++state.asked, steps = Number(at("steps").value);
  if (!filming()) say(state.manifest.generative ? "Making one …" : "Translating …", 0);
  if (!state.manifest.generative) {
    const short = size === "native" ? null : Number(size);
    return state.worker.postMessage({ kind: "run", id, steps, short, reverse: state.reverse });
  }
  const seed = /^\d{1,18}$/.test(at("seed").value) ? BigInt(at("seed").value) : 0n;
  state.worker.postMessage({ kind: "run", id, steps, seed, size: Number(size) });
}

// ── pictures ─────────────────────────────────────────────────────────────────────────────────────────────────────

function take(file, name = "picture") {
  if (!file || state.manifest?.generative) return;
  if (file.type && !file.type.startsWith("image/")) {
    return say(`${name} is not a picture${file.type.startsWith("video/") ? "; rfp translate takes films" : ""}.`, null, true);
  }
  if (filming()) endFilming();
  [state.source, state.name] = [file, name.replace(/\.[^.]*$/, "") || "picture"];
  if (!state.ready) return; // it is taken up when the model is there
  state.worker.postMessage({ kind: "load", id: state.asked, picture: file });
  ask();
}

const filming = () => state.source instanceof MediaStream;

async function film(facingMode = "environment") {
  const wanted = { video: { facingMode, width: { ideal: 1280 } }, audio: false };
  try {
    if (!navigator.mediaDevices) throw new Error("browsers lend it only to pages served by https, or from this computer");
    const stream = await navigator.mediaDevices.getUserMedia(wanted);
    if (filming()) endFilming();
    const camera = at("camera");
    camera.srcObject = state.source = stream;
    await camera.play();
    [state.facing, camera.hidden] = [facingMode, false];
    stage.film(camera.videoWidth, camera.videoHeight);
    at("film").textContent = "Keep this one";
    const cameras = (await navigator.mediaDevices.enumerateDevices()).filter(({ kind }) => kind === "videoinput");
    at("turn").hidden = cameras.length < 2;
    next();
  } catch (error) {
    say(`The camera is not to be had: ${error.message}`, null, true);
  }
}

/** Send the camera's present frame. */
async function next() {
  const stream = state.source;
  if (!state.ready || !filming()) return;
  const frame = await createImageBitmap(at("camera")).catch(() => null);
  if (state.source !== stream || !frame) return;
  state.worker.postMessage({ kind: "load", id: state.asked, picture: frame }, [frame]);
  ask();
}

/** Stop the camera and go on with its present frame as with any picture. */
async function keep() {
  const camera = at("camera"), frame = new OffscreenCanvas(camera.videoWidth, camera.videoHeight);
  frame.getContext("2d").drawImage(camera, 0, 0);
  endFilming();
  take(await frame.convertToBlob(), "camera");
}

function endFilming() {
  for (const track of state.source.getTracks()) track.stop();
  [state.source, at("camera").srcObject, at("camera").hidden, at("turn").hidden] = [null, null, true, true];
  at("film").textContent = "Use the camera";
}

function download() {
  at("after").toBlob((blob) => {
    const link = document.createElement("a");
    const { generative, domains } = state.manifest;
    link.href = URL.createObjectURL(blob);
    link.download = generative ? `seed-${at("seed").value}.png` : `${state.name}-${domains[state.reverse ? 0 : 1]}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
  }, "image/png");
}

// ── wiring ───────────────────────────────────────────────────────────────────────────────────────────────────────

at("choose").onclick = () => at("file").click();
at("file").onchange = ({ target }) => (take(target.files[0], target.files[0]?.name), (target.value = ""));
at("film").onclick = () => (filming() ? keep() : film());
at("turn").onclick = () => film(state.facing === "user" ? "environment" : "user");
at("download").onclick = download;
at("direction").onclick = () => (direct(!state.reverse), ask());
at("steps").oninput = () => ((at("steps-shown").value = at("steps").value), ask());
at("size").onchange = ask;
at("seed").onchange = ask;
at("another").onclick = () => ((at("seed").value = Math.floor(Math.random() * 1e9)), ask());
at("device").onchange = () => ((state.on = at("device").value), open());
at("stage").addEventListener("click", () => stage.state === "empty" && at("file").click());
document.addEventListener("paste", ({ clipboardData }) => take(clipboardData.files[0], "pasted"));
for (const kind of ["dragenter", "dragover", "dragleave", "drop"]) {
  document.addEventListener(kind, (event) => {
    event.preventDefault();
    at("stage").classList.toggle("over", kind === "dragenter" || kind === "dragover");
    if (kind === "drop") take(event.dataTransfer.files[0], event.dataTransfer.files[0]?.name);
  });
}

start().catch((error) => say(`The page could not start: ${error.message}`, null, true));
