// A picture's way through a model: what rfp.runtime's flow.py, pixels.py and euler.py do, to the same pixels.
// Pictures are {data, width, height} as ImageData is, RGBA and opaque; states are float32 [1, C, H, W] in [-1, 1].

import { noise } from "./noise.js";

/** Nets over one bundle. `run(role, inputs)` computes a graph: {name: {data, dims}} → {data, dims}. */
export class Flow {
  constructor(manifest, run) {
    this.manifest = manifest;
    this.run = run;
    this.back = manifest.alignment && inverse(manifest.alignment);
  }

  /** Translate a picture of any size at its own size; `onStep(k)` may throw to stop. */
  async translate(picture, steps, reverse, onStep = () => {}) {
    const { alignment } = this.manifest;
    if (alignment && !reverse) picture = moved(picture, alignment);
    const x = toFloat(picture, this.manifest.multiple);
    const z = this.manifest.latent ? await this.run("encoder", { x }) : x;
    const made = await this.#follow(z, steps, reverse, picture, onStep);
    return alignment && reverse ? moved(made, this.back) : made;
  }

  /** Picture `number` of a seed, the one that `rfp generate` makes. */
  async generate(seed, number, width, height, steps, onStep = () => {}) {
    const { multiple, latent, channels } = this.manifest;
    const factor = latent?.factor ?? 1;
    const side = (n) => Math.ceil(n / multiple) * (multiple / factor);
    const dims = [1, latent?.channels ?? channels, side(height), side(width)];
    const x = { data: noise(dims.reduce((a, b) => a * b), seed, number), dims };
    return this.#follow(x, steps, false, { width, height }, onStep);
  }

  async #follow(x, steps, reverse, { width, height }, onStep) {
    const velocity = (x, t) => this.run("velocity", { x, t: { data: Float32Array.of(t), dims: [1] } });
    const [t0, t1] = reverse ? [1, 0] : [0, 1];
    x = await integrate(velocity, x, steps, t0, t1, onStep);
    if (this.manifest.latent) x = await this.run("decoder", { z: x });
    return toPicture(x, width, height);
  }
}

/**
 * The graphs to run, {role: graph}, all of one precision: fp32 before fp16, or after it with `half` (a GPU that
 * computes in it), and int8 only where there is nothing else.
 */
export function choose({ graphs, latent }, half) {
  const roles = latent ? ["encoder", "velocity", "decoder"] : ["velocity"];
  for (const precision of half ? ["fp16", "fp32", "int8"] : ["fp32", "fp16", "int8"]) {
    const fitting = graphs.filter((g) => g.precision === precision && (g.format ?? "onnx") === "onnx");
    const chosen = roles.map((role) => [role, fitting.find((g) => (g.role ?? "velocity") === role)]);
    if (chosen.every(([, graph]) => graph)) return Object.fromEntries(chosen);
  }
  throw new Error("rfp.json lists no ONNX graphs of one precision; export the page again");
}

/** dx/dt = v(x, t) from t0 to t1 by equal Euler steps (arXiv:2209.03003, section 2.2). */
export async function integrate(velocity, x, steps, t0, t1, onStep = () => {}) {
  const dt = (t1 - t0) / steps, data = Float32Array.from(x.data);
  for (let k = 0; k < steps; k++) {
    const v = (await velocity({ data, dims: x.dims }, t0 + k * dt)).data;
    for (let i = 0; i < data.length; i++) data[i] += Math.fround(v[i] * Math.fround(dt));
    await onStep(k + 1);
  }
  return { data, dims: x.dims };
}

/** [width, height] at which a picture is translated: its short side at `short` px; null leaves it as it is. */
export function fit(width, height, short) {
  const scale = short === null ? 1 : short / Math.min(width, height);
  return [width, height].map((side) => Math.max(1, roundHalfEven(side * scale)));
}

/** Pixels to a state, padded at the right and the bottom by reflection up to the next multiple. */
export function toFloat({ data, width, height }, multiple) {
  const h = Math.ceil(height / multiple) * multiple, w = Math.ceil(width / multiple) * multiple;
  const out = new Float32Array(3 * h * w), scale = Math.fround(1 / 127.5);
  for (let y = 0, i = 0; y < h; y++) {
    for (let x = 0, row = reflect(y, height) * width; x < w; x++, i++) {
      const at = 4 * (row + reflect(x, width));
      for (let c = 0; c < 3; c++) out[c * h * w + i] = Math.fround(data[at + c] * scale) - 1;
    }
  }
  return { data: out, dims: [1, 3, h, w] };
}

/**
 * A picture moved by an affine map and a mesh, as runtime/alignment.py does and says: bicubic as Pillow's, and what was
 * not to be seen as the nearest edge is.
 */
export function moved({ data, width, height }, alignment) {
  const half = Math.min(width, height) / 2, out = new Uint8ClampedArray(data.length).fill(255);
  const at = (x, y) => 4 * (clamp(y, height) * width + clamp(x, width));
  for (let row = 0, i = 0; row < height; row++) {
    for (let column = 0; column < width; column++, i += 4) {
      const [u, v] = bend(alignment, (column + 0.5 - width / 2) / half, (row + 0.5 - height / 2) / half);
      const [p, q] = straight(alignment, u, v), x = p * half + width / 2, y = q * half + height / 2;
      const beside = x < RIM || x > width - RIM || y < RIM || y > height - RIM;
      const left = Math.floor(x - 0.5), top = Math.floor(y - 0.5), dx = x - 0.5 - left, dy = y - 0.5 - top;
      for (let k = 0; k < 3; k++) {
        const level = (m, n) => data[at(left + n, top + m) + k];
        const line = (m) => cubic(level(m, -1), level(m, 0), level(m, 1), level(m, 2), dx);
        out[i + k] = beside ? data[at(Math.floor(x), Math.floor(y)) + k] : cubic(line(-1), line(0), line(1), line(2), dy);
      }
    }
  }
  return { data: out, width, height };
}

const RIM = 1e-6;
const clamp = (i, n) => Math.min(Math.max(i, 0), n - 1);
const cubic = (p, q, r, s, d) => q + d * (r - p + d * (2 * (p - q) + r - s + d * (q - p + s - r)));

const straight = ([a, b, c, d, e, f], x, y) => [a * x + b * y + c, d * x + e * y + f];

const MESH = 9;

/** Where the mesh of an alignment, if it has one, moves (x, y). */
function bend(alignment, x, y) {
  if (alignment.length === 6) return [x, y];
  const [row, s] = cell(y), [column, t] = cell(x);
  return [x, y].map((n, k) => {
    const at = (i, j) => alignment[6 + 2 * (MESH * (row + i) + column + j) + k];
    return n + (1 - s) * ((1 - t) * at(0, 0) + t * at(0, 1)) + s * ((1 - t) * at(1, 0) + t * at(1, 1));
  });
}

/** The line of the mesh before a place, and how far it is to the next one. */
function cell(n) {
  const place = Math.min(Math.max(((n + 1) / 2) * (MESH - 1), 0), MESH - 1);
  const first = Math.min(Math.floor(place), MESH - 2);
  return [first, place - first];
}

/** The way back; of a mesh it is one that is exact at its own places. */
export function inverse(alignment) {
  const [a, b, c, d, e, f] = alignment, area = a * e - b * d;
  const [p, q, r, s] = [e / area, -b / area, -d / area, a / area];
  const back = [p, q, -(p * c + q * f), r, s, -(r * c + s * f)];
  for (let i = 0; alignment.length > 6 && i < MESH * MESH; i++) {
    const x = (2 * (i % MESH)) / (MESH - 1) - 1, y = (2 * Math.floor(i / MESH)) / (MESH - 1) - 1;
    const there = straight(back, x, y);
    let at = there;
    for (let n = 0; n < 100; n++) {
      const bent = bend(alignment, ...at);
      at = [there[0] - bent[0] + at[0], there[1] - bent[1] + at[1]];
    }
    const [u, v] = straight(alignment, ...at);
    back.push(u - x, v - y);
  }
  return back;
}

/** A state to pixels, cut to width × height; a Uint8ClampedArray rounds halves to even, as numpy does. */
export function toPicture({ data, dims }, width, height) {
  const [, , h, w] = dims, out = new Uint8ClampedArray(4 * width * height).fill(255);
  for (let c = 0; c < 3; c++) {
    for (let y = 0; y < height; y++) {
      for (let x = 0; x < width; x++) {
        const level = Math.fround(Math.fround(data[(c * h + y) * w + x] + 1) * 127.5);
        if (!Number.isFinite(level)) throw new Error("the graph gave values that are not finite");
        out[4 * (y * width + x) + c] = level;
      }
    }
  }
  return { data: out, width, height };
}

/**
 * Lanczos as Pillow does it, in its fixed point and its order (across, then down), so that pixels are the same.
 * `rows(y, n)` gives n rows of the source from row y on, RGBA: a large picture is never in memory as pixels.
 */
export function resize(rows, [width, height], [toWidth, toHeight]) {
  let data = new Uint8ClampedArray(4 * toWidth * height);
  const most = Math.max(1, Math.floor(STRIP / width));
  for (let y = 0; y < height; y += most) {
    const n = Math.min(most, height - y), strip = rows(y, n);
    const across = width === toWidth ? strip : resample(strip, width, toWidth, 4, n, 4 * width, 4 * toWidth);
    data.set(across, 4 * toWidth * y);
  }
  if (height !== toHeight) data = resample(data, height, toHeight, 4 * toWidth, toWidth, 4, 4);
  return { data, width: toWidth, height: toHeight };
}

const STRIP = 1 << 20; // pixels
const LOBES = 3, ONE = 1 << 22;

/** `lines` lines of `from` pixels become lines of `to`: pixels are `next` apart, lines `line` apart, then `outLine`. */
function resample(data, from, to, next, lines, line, outLine) {
  const kernels = kernelsOf(from, to), out = new Uint8ClampedArray(4 * to * lines).fill(255);
  for (let l = 0; l < lines; l++) {
    for (let i = 0; i < to; i++) {
      const { first, weights } = kernels[i];
      let at = l * line + first * next, r = ONE / 2, g = r, b = r;
      for (let k = 0; k < weights.length; k++, at += next) {
        r += data[at] * weights[k];
        g += data[at + 1] * weights[k];
        b += data[at + 2] * weights[k];
      }
      const pixel = l * outLine + i * next;
      out[pixel] = Math.floor(r / ONE);
      out[pixel + 1] = Math.floor(g / ONE);
      out[pixel + 2] = Math.floor(b / ONE);
    }
  }
  return out;
}

function kernelsOf(from, to) {
  const scale = from / to, stretch = Math.max(scale, 1), reach = LOBES * stretch;
  return Array.from({ length: to }, (_, i) => {
    const centre = (i + 0.5) * scale;
    const first = Math.max(0, Math.trunc(centre - reach + 0.5));
    const last = Math.min(from, Math.trunc(centre + reach + 0.5));
    const raw = Array.from({ length: last - first }, (_, k) => lanczos((k + first - centre + 0.5) * (1 / stretch)));
    const sum = raw.reduce((a, b) => a + b, 0);
    const weights = raw.map((w) => (w / sum) * ONE).map((w) => Math.trunc(w + (w < 0 ? -0.5 : 0.5)));
    return { first, weights: Float64Array.from(weights) };
  });
}

const sinc = (x) => (x === 0 ? 1 : Math.sin(x * Math.PI) / (x * Math.PI));
const lanczos = (x) => (-LOBES <= x && x < LOBES ? sinc(x) * sinc(x / LOBES) : 0);

function reflect(i, n) {
  if (n === 1) return 0;
  const m = i % (2 * n - 2);
  return m < n ? m : 2 * n - 2 - m;
}

function roundHalfEven(x) {
  const floor = Math.floor(x), rest = x - floor;
  return rest < 0.5 || (rest === 0.5 && floor % 2 === 0) ? floor : floor + 1;
}
