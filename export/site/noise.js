// N(0, 1) as a function of (seed, number): numpy's default_rng(SeedSequence(seed, spawn_key=(number,))) in float32,
// so that a seed gives here the picture that it gives to `rfp generate`.
// SeedSequence: O'Neill, "Developing a seed_seq Alternative" (2015). PCG64: O'Neill, HMC-CS-2014-0905, the XSL-RR
// variant. Ziggurat: Marsaglia and Tsang, J. Stat. Softw. 5(8), 2000, with 256 strips and 23 bits.

/** `length` values, float32; `seed` below 2^63 (a number or BigInt), `number` below 2^32. */
export function noise(length, seed, number) {
  const next = pcg64(seedWords(BigInt(seed), number));
  return Float32Array.from({ length }, () => normal(next));
}

/** Eight 32-bit words out of a seed and a spawn key. */
function seedWords(seed, number) {
  const words = [];
  do words.push(Number(seed & 0xffffffffn)); while ((seed >>= 32n));
  while (words.length < 4) words.push(0);
  words.push(number >>> 0);

  let a = 0x43b0d7e5;
  const hash = (value) => {
    value ^= a;
    a = Math.imul(a, 0x931e8875);
    value = Math.imul(value, a);
    return value ^ (value >>> 16);
  };
  const mix = (x, y) => {
    const r = Math.imul(0xca01f9dd, x) - Math.imul(0x4973f715, y);
    return r ^ (r >>> 16);
  };
  const pool = words.slice(0, 4).map(hash);
  for (let s = 0; s < 4; s++) for (let d = 0; d < 4; d++) if (s !== d) pool[d] = mix(pool[d], hash(pool[s]));
  for (const word of words.slice(4)) for (let d = 0; d < 4; d++) pool[d] = mix(pool[d], hash(word));

  let b = 0x8b51f9dd;
  return Array.from({ length: 8 }, (_, i) => {
    let value = pool[i % 4] ^ b;
    b = Math.imul(b, 0x58f38ded);
    value = Math.imul(value, b);
    return (value ^ (value >>> 16)) >>> 0;
  });
}

/** A function that gives the next 32 bits: each 64-bit draw gives its low half first. */
function pcg64(words) {
  const MULTIPLIER = 0x2360ed051fc65da44385df649fccf645n;
  const u64 = (i) => BigInt(words[2 * i]) | (BigInt(words[2 * i + 1]) << 32n);
  const u128 = (i) => (u64(i) << 64n) | u64(i + 1);
  const step = (state) => BigInt.asUintN(128, state * MULTIPLIER + increment);
  const increment = BigInt.asUintN(128, (u128(2) << 1n) | 1n);
  let state = step(BigInt.asUintN(128, increment + u128(0)));
  let high = null;
  return () => {
    if (high !== null) {
      const word = high;
      high = null;
      return word;
    }
    state = step(state);
    const folded = BigInt.asUintN(64, (state >> 64n) ^ state), turn = state >> 122n;
    const word = BigInt.asUintN(64, (folded >> turn) | (folded << (64n - turn)));
    high = Number(word >> 32n);
    return Number(word & 0xffffffffn);
  };
}

const R = 3.6541528853610088, INVERSE_R = 1 / R, AREA = 0.00492867323397465524494; // where the tail begins; of a strip
const { bound, width, density } = ziggurat();

function ziggurat() {
  const m = 2 ** 23, f = (x) => Math.exp(-0.5 * x * x);
  const bound = new Uint32Array(256), width = new Float32Array(256), density = new Float32Array(256);
  const bottom = AREA / f(R);
  [bound[0], width[0], density[0]] = [Math.trunc((R / bottom) * m), bottom / m, 1];
  [width[255], density[255]] = [R / m, f(R)];
  for (let i = 254, x = R; i > 0; i--) {
    const above = Math.sqrt(-2 * Math.log(AREA / x + f(x)));
    bound[i + 1] = Math.trunc((above / x) * m);
    [width[i], density[i]] = [above / m, f(above)];
    x = above;
  }
  return { bound, width, density };
}

function normal(next) {
  const uniform = () => (next() >>> 8) / 2 ** 24;
  for (;;) {
    const bits = next(), strip = bits & 0xff, sign = bits & 0x100 ? -1 : 1, r = (bits >>> 9) & 0x7fffff;
    const x = sign * Math.fround(r * width[strip]);
    if (r < bound[strip]) return x;
    if (strip === 0) return tail(uniform, (r >>> 8) & 1 ? -1 : 1);
    if ((density[strip - 1] - density[strip]) * uniform() + density[strip] < Math.exp(-0.5 * x * x)) return x;
  }
}

function tail(uniform, sign) {
  for (;;) {
    const x = -INVERSE_R * Math.log1p(-uniform()), y = -Math.log1p(-uniform());
    if (y + y > x * x) return sign * (R + x);
  }
}
