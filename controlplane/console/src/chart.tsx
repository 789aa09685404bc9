// A chart of the last ten minutes, with the instants of snapshots.

import { useEffect, useRef } from "preact/hooks";
import uPlot from "uplot";
import type { Mark } from "./figures";
import { clock } from "./format";

export interface Line {
  name: string;
  /** A colour of the style sheet. */
  colour: string;
  dashed?: boolean;
  values: (number | null)[];
}

const HEIGHT = 150;
const SPAN_S = 600;
/** Labels nearer to each other than this are left out, in pixels. */
const LABEL_STEP = 56;

interface Props {
  title: string;
  times_s: number[];
  lines: Line[];
  marks: Mark[];
  show: (value: number) => string;
  logarithmic?: boolean;
}

export function Chart({ title, times_s, lines, marks, show, logarithmic }: Props) {
  const place = useRef<HTMLDivElement>(null);
  const plot = useRef<uPlot | null>(null);
  const shown = useRef({ marks, show });
  shown.current = { marks, show };
  const names = lines.map((line) => line.name).join();

  useEffect(() => {
    const element = place.current;
    if (!element) {
      return;
    }
    const build = () => {
      plot.current?.destroy();
      plot.current = new uPlot(options(element, lines, logarithmic ?? false, shown), [[], ...lines.map(() => [])], element);
    };
    build();
    const dark = matchMedia("(prefers-color-scheme: dark)");
    const rebuild = () => {
      const data = plot.current?.data;
      build();
      if (data) {
        plot.current?.setData(data);
      }
    };
    dark.addEventListener("change", rebuild);
    const resized = new ResizeObserver(() => plot.current?.setSize({ width: element.clientWidth, height: HEIGHT }));
    resized.observe(element);
    return () => {
      dark.removeEventListener("change", rebuild);
      resized.disconnect();
      plot.current?.destroy();
      plot.current = null;
    };
  }, [names, logarithmic]);

  useEffect(() => {
    // On a logarithmic scale there is no place for nothing.
    const positive = (value: number | null) => (logarithmic && value !== null && value <= 0 ? null : value);
    plot.current?.setData([times_s, ...lines.map((line) => line.values.map(positive))]);
  }, [times_s, marks]);

  return (
    <figure>
      <figcaption>{title}</figcaption>
      <div ref={place} class="chart" role="img" aria-label={`${title}, the last ten minutes`} />
    </figure>
  );
}

function options(element: HTMLElement, lines: Line[], logarithmic: boolean, shown: { current: { marks: Mark[]; show: (value: number) => string } }): uPlot.Options {
  const style = getComputedStyle(document.documentElement);
  const colour = (name: string) => style.getPropertyValue(`--${name}`).trim();
  const font = `11px ${style.getPropertyValue("--font").trim()}`;
  const axis = { stroke: colour("quiet"), font, grid: { stroke: colour("line"), width: 1 }, ticks: { show: false } };
  // Nothing at all has a scale too.
  const lowest = 10;
  const show = (value: number | null) => (value === null || value === undefined ? "-" : shown.current.show(value));
  return {
    width: element.clientWidth,
    height: HEIGHT,
    padding: [14, 8, 0, 0],
    cursor: { sync: { key: "past" }, drag: { x: false, y: false }, points: { size: 5 } },
    scales: {
      x: { time: true, range: () => { const now_s = Date.now() / 1000; return [now_s - SPAN_S, now_s]; } },
      y: logarithmic
        ? { distr: 3, range: (_plot, low, high) => (low ? uPlot.rangeLog(low, high, 10, true) : [1e3, 1e7]) }
        : { range: (_plot, _low, high) => [0, high > lowest ? high * 1.1 : lowest] },
    },
    axes: [
      { ...axis, space: 70, size: 22, values: (_plot, splits) => splits.map((split) => clock(split * 1e9).slice(0, 5)) },
      {
        ...axis,
        ...(logarithmic ? { grid: { ...axis.grid, filter: powers }, filter: powers } : {}),
        size: 62,
        values: (_plot, splits) => splits.map((split) => (split === null ? "" : show(split))),
      },
    ],
    series: [
      { label: "time", value: (_plot, value) => markAt(shown.current.marks, value) },
      ...lines.map((line) => ({
        label: line.name,
        stroke: colour(line.colour),
        width: 1.25,
        ...(line.dashed ? { dash: [4, 3] } : {}),
        points: { show: false },
        value: (_plot: uPlot, value: number | null) => show(value),
      })),
    ],
    hooks: { draw: [(plot) => drawMarks(plot, shown.current.marks, colour("mark"), font)] },
  };
}

/** Of what a logarithmic scale would mark, the powers of ten. */
function powers(_plot: uPlot, splits: number[]): (number | null)[] {
  return splits.map((split) => (Number.isInteger(Math.round(Math.log10(split) * 1e6) / 1e6) ? split : null));
}

/** The time below the cursor, and the snapshot that was taken in that second. */
function markAt(marks: Mark[], time_s: number | null): string {
  if (time_s === null || time_s === undefined) {
    return "-";
  }
  const mark = marks.find((mark) => Math.abs(mark.time_s - time_s) <= 1);
  return mark ? `${clock(time_s * 1e9)} ${mark.about}` : clock(time_s * 1e9);
}

function drawMarks(plot: uPlot, marks: Mark[], colour: string, font: string) {
  const { ctx, bbox } = plot;
  const ratio = devicePixelRatio;
  ctx.save();
  ctx.strokeStyle = colour;
  ctx.fillStyle = colour;
  ctx.lineWidth = ratio;
  ctx.setLineDash([2 * ratio, 3 * ratio]);
  ctx.font = font.replace(/^\d+/, (size) => String(Number(size) * ratio));
  ctx.textAlign = "center";
  let free = -Infinity;
  for (const mark of marks) {
    const x = Math.round(plot.valToPos(mark.time_s, "x", true));
    if (x < bbox.left || x > bbox.left + bbox.width) {
      continue;
    }
    ctx.beginPath();
    ctx.moveTo(x, bbox.top);
    ctx.lineTo(x, bbox.top + bbox.height);
    ctx.stroke();
    if (x >= free) {
      const half = ctx.measureText(mark.label).width / 2;
      ctx.fillText(mark.label, Math.min(x, bbox.left + bbox.width - half), bbox.top - 3 * ratio);
      free = x + LABEL_STEP * ratio;
    }
  }
  ctx.restore();
}
