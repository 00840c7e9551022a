// What was heard and said in the last seconds, as bars that move past: yours in the accent's colour, the reply's in ink.

const STEP = 5;
const WIDTH = 2.5;

export class Meter {
  #canvas;
  #brush;
  #levels = [];
  #isDue = false;

  constructor(canvas) {
    this.#canvas = canvas;
    this.#brush = canvas.getContext("2d");
    new ResizeObserver(() => this.#plan()).observe(canvas);
  }

  /** kind: "mine" or "theirs"; level: 0 to 1. */
  add(kind, level) {
    this.#levels.push({ kind, level });
    this.#levels.splice(0, this.#levels.length - 200);
    this.#plan();
  }

  clear() {
    this.#levels = [];
    this.#plan();
  }

  #plan() {
    if (this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => {
      this.#isDue = false;
      this.#draw();
    });
  }

  #draw() {
    const { clientWidth: width, clientHeight: height } = this.#canvas;
    this.#canvas.width = width * devicePixelRatio;
    this.#canvas.height = height * devicePixelRatio;
    this.#brush.scale(devicePixelRatio, devicePixelRatio);
    const style = getComputedStyle(this.#canvas);
    const colours = { mine: style.accentColor, theirs: style.color, none: style.borderTopColor };
    const count = Math.floor(width / STEP);
    const shown = matchMedia("(prefers-reduced-motion: reduce)").matches ? this.#steady(count) : this.#passing(count);
    shown.forEach(({ kind, level }, index) => {
      const size = Math.max(WIDTH, level * height);
      this.#brush.fillStyle = colours[kind];
      this.#brush.beginPath();
      this.#brush.roundRect(index * STEP, (height - size) / 2, WIDTH, size, WIDTH / 2);
      this.#brush.fill();
    });
  }

  /** The latest at the right. */
  #passing(count) {
    const levels = this.#levels.slice(-count);
    return [...Array(count - levels.length).fill({ kind: "none", level: 0 }), ...levels];
  }

  /** For who does not want things to move: how loud it is now, as a row that is filled. */
  #steady(count) {
    const { kind, level } = this.#levels.at(-1) ?? { kind: "none", level: 0 };
    return Array.from({ length: count }, (_, index) => ({ kind: index < level * count ? kind : "none", level: 0.3 }));
  }
}
