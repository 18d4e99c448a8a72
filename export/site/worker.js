// Everything heavy, beside the page: decoding, the graphs in ONNX Runtime, the steps. One run at a time; a newer
// request ends the one under way.

import { Flow, choose, fit, resize } from "./flow.js";

let flow, device, source; // source: a promise of an ImageBitmap
let newest = 0, last = Promise.resolve();
const fits = new Map(); // by size, of the source

const answers = { open, load, run };

onmessage = async ({ data: { kind, ...request } }) => {
  try {
    const reply = await answers[kind](request);
    if (reply) postMessage({ kind, id: request.id, ...reply }, reply.output ? [reply.output.data.buffer] : []);
  } catch (error) {
    if (!(error instanceof Overtaken)) postMessage({ kind: "failed", during: kind, id: request.id, device, message: said(error) });
  }
};

class Overtaken extends Error {}

/** Fetch the graphs and start ONNX Runtime; `on`: gpu, cpu, or auto, which takes a GPU that is none in software. */
async function open({ manifest, on }) {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  const software = adapter?.info?.isFallbackAdapter || adapter?.isFallbackAdapter;
  const gpu = adapter && (on === "gpu" || (on === "auto" && !software));
  device = gpu ? "gpu" : "cpu";
  const ort = await import(gpu ? "./ort/ort.webgpu.bundle.min.mjs" : "./ort/ort.wasm.bundle.min.mjs");
  const threads = self.crossOriginIsolated ? Math.min(navigator.hardwareConcurrency || 1, 8) : 1;
  ort.env.wasm.numThreads = threads;
  ort.env.logLevel = "error";
  const options = { executionProviders: [gpu ? "webgpu" : "wasm"], logSeverityLevel: 3 };
  const graphs = choose(manifest, gpu && adapter.features.has("shader-f16")), sessions = {};
  const total = Object.values(graphs).reduce((sum, graph) => sum + graph.bytes, 0);
  let loaded = 0;
  for (const [role, graph] of Object.entries(graphs)) {
    const model = await download(graph, (bytes) => postMessage({ kind: "loading", loaded: (loaded += bytes), total }));
    sessions[role] = await ort.InferenceSession.create(model, options);
  }
  flow = new Flow(manifest, async (role, inputs) => {
    const session = sessions[role], feeds = {};
    for (const [name, { data, dims }] of Object.entries(inputs)) feeds[name] = new ort.Tensor("float32", data, dims);
    const result = (await session.run(feeds))[session.outputNames[0]];
    const { data, dims } = result;
    return { data, dims };
  });
  return { device, threads, choice: Boolean(adapter) };
}

/** A graph's bytes, as they were when it was exported. The sum in the address keeps older ones out of caches' way. */
async function download({ file, bytes, sha256 }, onBytes) {
  const response = await fetch(`./${encodeURIComponent(file)}?${sha256.slice(0, 12)}`);
  if (!response.ok) throw new Error(`${file} could not be fetched: ${response.status} ${response.statusText}`);
  const model = new Uint8Array(bytes), reader = response.body.getReader();
  let at = 0;
  for (let part; !(part = await reader.read()).done; at += part.value.length) {
    if (at + part.value.length <= bytes) model.set(part.value, at);
    onBytes(part.value.length);
  }
  const digest = crypto.subtle && (await crypto.subtle.digest("SHA-256", model)); // not there on plain http
  const found = digest && Array.from(new Uint8Array(digest), (b) => b.toString(16).padStart(2, "0")).join("");
  if (at !== bytes || (found && found !== sha256)) throw new Error(`${file} is damaged or not whole; reload the page`);
  return model;
}

/** Take a picture: a file's Blob, or a camera's frame as ImageBitmap. Upright, profile set aside, as rfp reads them. */
async function load({ picture }) {
  const before = source;
  const options = { imageOrientation: "from-image", colorSpaceConversion: "none", premultiplyAlpha: "none" };
  source = picture instanceof ImageBitmap ? Promise.resolve(picture) : createImageBitmap(picture, options);
  before?.then((bitmap) => bitmap.close(), () => {});
  fits.clear();
  await source.catch(() => {
    throw new Error("this browser cannot read that as a picture");
  });
}

/** Translate the picture taken last, or make one out of noise; after the run under way has noticed and ended. */
function run(request) {
  newest = request.id;
  const turn = last.then(() => follow(request));
  last = turn.catch(() => {});
  return turn;
}

async function follow({ id, steps, short, reverse, seed, size }) {
  const going = () => {
    if (id !== newest) throw new Overtaken();
  };
  const onStep = async (step) => {
    postMessage({ kind: "step", id, step, steps });
    await messages();
    going();
  };
  going();
  const began = performance.now();
  const input = seed === undefined ? await fitted(short) : null;
  const output = input
    ? await flow.translate(input, steps, reverse, onStep)
    : await flow.generate(seed, 0, size, size, steps, onStep);
  return { input, output, seconds: (performance.now() - began) / 1000 };
}

/** The picture at the size at which it is translated, laid over white. */
async function fitted(short) {
  const bitmap = await source.catch(() => {
    throw new Overtaken(); // `load` has said why
  });
  if (fits.has(short)) return fits.get(short);
  const size = [bitmap.width, bitmap.height];
  let canvas, context;
  const rows = (y, n) => {
    if (canvas?.height !== n) {
      canvas = new OffscreenCanvas(size[0], n);
      context = canvas.getContext("2d", { willReadFrequently: true });
    }
    context.fillStyle = "white";
    context.fillRect(0, 0, size[0], n);
    context.drawImage(bitmap, 0, -y);
    return context.getImageData(0, 0, size[0], n).data;
  };
  fits.set(short, resize(rows, size, fit(...size, short)));
  return fits.get(short);
}

/** Let messages in that wait. */
function messages() {
  return new Promise((resolve) => {
    const { port1, port2 } = new MessageChannel();
    port1.onmessage = () => (port1.close(), resolve());
    port2.postMessage(null);
  });
}

const said = (error) => String(error?.message ?? error).split("\n")[0].slice(0, 300);
