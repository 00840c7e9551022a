// Put into the page before its own scripts: keeps what its playback worklet tells, and listens in on what leaves it.
window.recorded = { reports: [], context: null, rendered: null };

window.AudioWorkletNode = class extends AudioWorkletNode {
  constructor(context, name, options) {
    super(context, name, options);
    if (name !== "playback") return;
    const tap = new AnalyserNode(context, { fftSize: 32768 });
    // Only what leads to the loudspeaker is asked for samples; this way is a silent one.
    this.connect(tap).connect(new GainNode(context, { gain: 0 })).connect(context.destination);
    window.recorded.context = context;
    window.recorded.rendered = () => {
      const samples = new Float32Array(tap.fftSize);
      tap.getFloatTimeDomainData(samples);
      return Array.from(samples);
    };
    this.port.addEventListener("message", ({ data }) => {
      const report = { ...data, samples: data.samples && Array.from(data.samples) };
      if (data.kind === "drained") report.rendered = window.recorded.rendered();
      window.recorded.reports.push(report);
    });
  }
};
