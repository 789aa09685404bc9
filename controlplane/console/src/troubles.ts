// Which devices somebody should look at: pure functions.

import { percent, size, time, words } from "./format";
import type { Device, Occurrence, Pool } from "./model";
import { sideName } from "./making";

export interface Trouble {
  /** Of the device; of a side whose device is not known, its number. */
  path: string;
  pool: string | null;
  /** It fails, or is about to; otherwise it should be watched. */
  isBad: boolean;
  /** The state in a word or two. */
  state: string;
  text: string;
  /** What was told of it last. */
  last: Occurrence | null;
}

/** What was told of a device counts as its state for so long. */
const TOLD_NS = 3600e9;

const ABOUT_DEVICES = ["device_stalled", "device_stall_ended", "device_lost", "device_returned", "device_resized", "mirror_side_out", "mirror_lost", "mirror_joined", "mirror_not_copied", "shard_stopped"];

/** Under what paths there is something to say about a device: its own, and those by which pools name it. */
export function pathsOf(device: Device): string[] {
  const generic = device.nvme?.generic;
  return [device.path, ...(generic ? [generic] : []), ...(device.pool_paths ?? [])];
}

/** What was told last of a device; `occurrences` are newest first. */
export function lastOf(occurrences: Occurrence[], ...paths: string[]): Occurrence | null {
  const names = (one: Occurrence) => {
    const words = one.text.split(/[\s,:;()]+/);
    return paths.some((path) => one.subject === path || words.includes(path));
  };
  return occurrences.find((one) => ABOUT_DEVICES.includes(one.kind) && names(one)) ?? null;
}

/** The worst first. */
export function troublesOf(devices: Device[], pools: Pool[], occurrences: Occurrence[], now_ns: number): Trouble[] {
  const found: Trouble[] = [];
  const add = (path: string, pool: string | null, isBad: boolean, state: string, text: string) => {
    found.push({ path, pool, isBad, state, text, last: lastOf(occurrences, path) });
  };
  for (const pool of pools) {
    addOfPool(pool, add);
  }
  for (const device of devices) {
    const pool = device.used_by.find(({ kind }) => kind === "pool")?.name ?? null;
    addHealth(device, (isBad, state, text) => add(device.path, pool, isBad, state, text));
  }
  // What comes and goes.
  const paths = new Set([...devices.map(({ path }) => path), ...pools.flatMap((pool) => pool.devices.map(({ path }) => path))]);
  for (const path of paths) {
    const last = lastOf(occurrences, path);
    if (last?.kind === "device_stall_ended" && now_ns - last.time_ns < TOLD_NS) {
      add(path, last.pool || null, false, "stalled", `at ${time(last.time_ns)}`);
    }
  }
  return found.sort((a, b) => Number(b.isBad) - Number(a.isBad));
}

type Add = (path: string, pool: string | null, isBad: boolean, state: string, text: string) => void;

function addOfPool(pool: Pool, add: Add) {
  for (const device of pool.devices) {
    if (device.stalled_since_ns !== undefined) {
      add(device.path, pool.name, true, "silent", `it has not answered since ${time(device.stalled_since_ns)}`);
    }
    if (device.lost_since_ns !== undefined) {
      const isSmall = device.size_bytes < device.pool_bytes;
      const what = isSmall ? `${size(device.size_bytes)} are there, ${size(device.pool_bytes)} are needed` : "it does not answer, or was taken out";
      add(device.path, pool.name, true, isSmall ? "too small" : "lost", `since ${time(device.lost_since_ns)}: ${what}`);
    }
  }
  for (const side of pool.sides ?? []) {
    const path = side.path ?? `side ${sideName(side)}`;
    const since = side.since_ns === undefined ? "" : ` since ${time(side.since_ns)}`;
    if (side.state === "out" && !pool.devices.some((device) => device.path === path && device.lost_since_ns !== undefined)) {
      add(path, pool.name, true, "out", `side ${sideName(side)}${since}${side.why ? `: ${side.why}` : ""}`);
    } else if (side.state === "resync") {
      add(path, pool.name, false, "resync", `side ${sideName(side)} is copied what it lacks: ${size(side.left_bytes)} left`);
    }
  }
}

function addHealth(device: Device, add: (isBad: boolean, state: string, text: string) => void) {
  const smart = device.nvme?.identified?.smart;
  if (!smart) {
    return;
  }
  const temperature = smart.temperature_celsius === null ? "" : ` (${smart.temperature_celsius} °C)`;
  for (const warning of smart.warnings) {
    add(true, "health", warning.includes("temperature") ? `${words(warning)}${temperature}` : words(warning));
  }
  if (smart.warnings.length === 0 && smart.spare_percent < smart.spare_threshold_percent) {
    add(true, "health", `${percent(smart.spare_percent, 100)} of the spare blocks are left`);
  }
  if (smart.used_percent >= 100) {
    add(false, "health", `${percent(smart.used_percent, 100)} of its life are used`);
  }
  if (smart.media_errors > 0) {
    add(false, "health", `could not give back what was written: ${smart.media_errors} times`);
  }
}
