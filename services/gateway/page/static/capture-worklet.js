// From the microphone: packets of 20 ms at 24 kHz.

const RATE_HZ = 24000;
const PACKET_SAMPLES = 480;

class Capture extends AudioWorkletProcessor {
  constructor() {
    super();
    this.packet = new Int16Array(PACKET_SAMPLES);
    this.filled = 0;
    // Between two samples of the input: at its rate that is each of them, at another one a point on the line.
    this.stride = sampleRate / RATE_HZ;
    this.position = 0;
    this.last = 0;
  }

  process([input]) {
    for (const sample of input[0] ?? []) {
      for (; this.position < 1; this.position += this.stride) {
        this.put(this.last + (sample - this.last) * this.position);
      }
      this.position -= 1;
      this.last = sample;
    }
    return true;
  }

  put(value) {
    this.packet[this.filled] = Math.max(-32768, Math.min(32767, Math.round(value * 32768)));
    this.filled += 1;
    if (this.filled === PACKET_SAMPLES) {
      this.port.postMessage(this.packet.slice());
      this.filled = 0;
    }
  }
}

registerProcessor("capture", Capture);
