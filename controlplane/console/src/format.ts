// Figures as text, as the command line has them, and back.

const SIZES = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];

function inUnits(value: number, step: number, units: string[]): string {
  let unit = 0;
  while (value >= step && unit < units.length - 1) {
    value /= step;
    unit++;
  }
  // What would be shown as 1024 KiB is 1 MiB.
  if (value >= step - 0.5 && unit > 0 && unit < units.length - 1) {
    value /= step;
    unit++;
  }
  const digits = unit === 0 || value >= 100 ? 0 : value >= 10 ? 1 : 2;
  return `${value.toFixed(digits).replace(/\.0+$/, "")} ${units[unit]}`;
}

export function size(bytes: number): string {
  return inUnits(bytes, 1024, SIZES);
}

export function perSecond(bytes: number): string {
  return `${size(bytes)}/s`;
}

export function duration(ns: number): string {
  const s = ns / 1e9;
  if (s < 1) {
    return inUnits(ns, 1000, ["ns", "µs", "ms"]);
  }
  if (s < 60) {
    return `${s < 10 ? s.toFixed(2) : s.toFixed(1)} s`;
  }
  const parts: [number, string][] = [[86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const at = parts.findIndex(([length]) => s >= length);
  const [length, unit] = parts[at] ?? [1, "s"];
  const [next, nextUnit] = parts[at + 1] ?? [1, "s"];
  const rest = Math.floor((s % length) / next);
  return `${Math.floor(s / length)} ${unit}${rest > 0 ? ` ${rest} ${nextUnit}` : ""}`;
}

export function count(value: number): string {
  return Math.round(value).toLocaleString("en-US");
}

export function percent(part: number, whole: number): string {
  return whole > 0 ? `${((part * 100) / whole).toFixed(1)}%` : "-";
}

const two = (value: number) => String(value).padStart(2, "0");

export function clock(ns: number): string {
  const time = new Date(ns / 1e6);
  return `${two(time.getHours())}:${two(time.getMinutes())}:${two(time.getSeconds())}`;
}

export function time(ns: number): string {
  const day = new Date(ns / 1e6);
  return `${day.getFullYear()}-${two(day.getMonth() + 1)}-${two(day.getDate())} ${clock(ns)}`;
}

/** A size as people write it: 10GiB or 10G (1024s), 10GB (1000s), 4096; null if it is none. */
export function parseSize(text: string): number | null {
  const found = /^(\d+(?:\.\d+)?)\s*(?:([kmgtp])(i?b)?|b)?$/i.exec(text.trim());
  if (!found) {
    return null;
  }
  const [, number, unit, kind] = found;
  const power = unit ? "kmgtp".indexOf(unit.toLowerCase()) + 1 : 0;
  const bytes = Number(number) * (kind?.toLowerCase() === "b" ? 1000 : 1024) ** power;
  return Number.isSafeInteger(bytes) ? bytes : null;
}

/** A time stamp as the end of a name: 20261122T111759Z. */
export function stamp(ms: number): string {
  return `${new Date(ms).toISOString().slice(0, 19).replaceAll(/[-:]/g, "")}Z`;
}

/** `device_lost` as people read it. */
export function words(name: string): string {
  return name.replaceAll("_", " ");
}

const PERIODS: [string, number][] = [["d", 86_400], ["h", 3600], ["m", 60], ["s", 1]];

/** A period as the command line has it, in nanoseconds: 15m, 90s, 1d; null if it is none. */
export function parsePeriod(text: string): number | null {
  const found = /^(\d+)\s*(s|m|min|h|d|w)$/.exec(text.trim());
  const [unit, times] = found?.[2] === "w" ? ["d", 7] : [found?.[2]?.slice(0, 1), 1];
  const factor = (PERIODS.find(([name]) => name === unit)?.[1] ?? Number.NaN) * times;
  const ns = Number(found?.[1]) * factor * 1e9;
  return Number.isSafeInteger(ns) && ns > 0 ? ns : null;
}

/** The same as text. */
export function period(ns: number): string {
  const [unit, factor] = PERIODS.find(([, factor]) => (ns / 1e9) % factor === 0) ?? ["s", 1];
  return `${ns / 1e9 / factor}${unit}`;
}

const RULES = ["last", "hourly", "daily", "weekly", "monthly", "yearly"];

/** What is kept, as the command line has it: last=60,hourly=24; an error if it is nothing of that kind. */
export function parseKeep(text: string): Record<string, number> {
  const rules: Record<string, number> = {};
  for (const part of text.split(",")) {
    const [, name, number] = /^\s*(\w+)\s*=\s*(\d+)\s*$/.exec(part) ?? [];
    if (name === undefined || !RULES.includes(name) || rules[name] !== undefined) {
      throw new Error(`${part.trim() || "nothing"} is no rule: last=60,hourly=24,daily=7,weekly=4,monthly=12,yearly=10, or some of these`);
    }
    rules[name] = Number(number);
  }
  return rules;
}

export function keep(rules: Record<string, number>): string {
  return RULES.filter((name) => (rules[name] ?? 0) > 0).map((name) => `${name}=${rules[name]}`).join(", ");
}
