// 16-bit mono PCM, as it goes over the wire and through the worklets.

export const SAMPLE_RATE_HZ = 24000;

/** Base64 of samples, little-endian. */
export function encode(samples) {
  return btoa(String.fromCharCode(...new Uint8Array(samples.buffer, samples.byteOffset, samples.byteLength)));
}

/** Samples of base64. */
export function decode(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let index = 0; index < text.length; index += 1) bytes[index] = text.charCodeAt(index);
  return new Int16Array(bytes.buffer);
}

/** How loud samples are, 0 (below -54 dB) to 1 (full scale). */
export function loudness(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  const decibels = 10 * Math.log10(sum / Math.max(samples.length, 1) / 32768 ** 2 + 1e-9);
  return Math.min(1, Math.max(0, 1 + (decibels + 6) / 48));
}
