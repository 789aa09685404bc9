// What devices can be used for, and the request that makes a pool of them: pure functions.

import { parseSize, size } from "./format";
import type { Device, Side } from "./model";

/** A device that may be chosen. */
export interface Choice {
  path: string;
  about: string;
  /** Why it cannot be chosen, whatever is done: somebody uses it. */
  refused?: string;
  /** What lies on it: it has to be named again before that is overwritten. */
  holds?: string;
}

/** Who uses it, or what keeps a pool from being made on it. */
export function uses(device: Device): string {
  const used = device.used_by.map(({ kind, name }) => ({ pool: `pool ${name}`, mount: `mounted on ${name}`, swap: "swap", holder: `part of ${name}` })[kind] ?? `${kind} ${name}`);
  if (used.length > 0) {
    return used.join(", ");
  }
  if (device.partitions.length > 0) {
    return `has partitions: ${device.partitions.join(", ")}`;
  }
  return device.content !== null ? `holds ${device.content}` : device.content_error !== undefined ? "not readable" : "-";
}

/** The appliance refuses the same (appliance/make.rs); here it is said before. */
export function choiceOf(device: Device): Choice {
  const choice: Choice = { path: device.path, about: [size(device.size_bytes), device.model].filter(Boolean).join(", ") };
  if (device.used_by.length > 0) {
    return { ...choice, refused: `in use: ${uses(device)}` };
  }
  if (device.read_only) {
    return { ...choice, refused: "cannot be written" };
  }
  if (device.size_bytes === 0) {
    return { ...choice, refused: "nothing is in it" };
  }
  if (device.content_error !== undefined) {
    return { ...choice, refused: `cannot be read: ${device.content_error}` };
  }
  const holds = [device.content, device.partitions.length > 0 ? `partitions (${device.partitions.join(", ")})` : null].filter(Boolean).join(", with ");
  return holds === "" ? choice : { ...choice, holds };
}

/** What was chosen and typed. */
export interface Wish {
  name: string;
  /** In the order in which they were chosen. */
  devices: string[];
  mirror: boolean;
  /** Of each file that does not exist yet; empty: none is made. */
  size: string;
  /** What is overwritten, named again. */
  again: string[];
}

/** Which devices hold the same. */
export function pairs(devices: string[]): [string, string | undefined][] {
  return devices.flatMap((path, index) => (index % 2 === 0 ? [[path, devices[index + 1]] as [string, string | undefined]] : []));
}

/** The body of POST `/v1/pools`; an error if something is missing that the page can see. */
export function poolRequest({ name, devices, mirror, size, again }: Wish): Record<string, unknown> {
  if (devices.length === 0) {
    throw new Error("no device is chosen");
  }
  const twice = devices.find((path, index) => devices.indexOf(path) !== index);
  if (twice !== undefined) {
    throw new Error(`${twice} is chosen twice`);
  }
  const relative = devices.find((path) => !path.startsWith("/"));
  if (relative !== undefined) {
    throw new Error(`${relative} is no whole path: begin it with /`);
  }
  if (mirror && devices.length % 2 === 1) {
    throw new Error(`${devices.at(-1)} has no other side: mirrors are made of pairs`);
  }
  const size_bytes = size.trim() === "" ? null : parseSize(size);
  if (size.trim() !== "" && size_bytes === null) {
    throw new Error(`${size} is no size: 10GiB, 500MB`);
  }
  return { name, devices, mirror, force_devices: again, ...(size_bytes === null ? {} : { size_bytes }) };
}

/** A side of a mirror as commands name it. */
export function sideName(side: Side): string {
  return `${side.device}.${side.side}`;
}
