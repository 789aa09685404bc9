// The block devices of the machine.

import { useState } from "preact/hooks";
import { change } from "./api";
import { count, percent, size, time, words } from "./format";
import { useAsked } from "./hooks";
import { type Choice, choiceOf, pairs, poolRequest, uses } from "./making";
import type { Device, Identified, Nvme, Occurrence, Pool, Smart, Status } from "./model";
import { Ask, linesOf, Pairs, type Question, State, Table, type Values, Wrong } from "./parts";
import { lastOf, pathsOf, type Trouble, troublesOf } from "./troubles";

type Rows = Parameters<typeof Pairs>[0]["rows"];

/** A disk that recovers from an error takes its time, and the daemon asks each. */
export const DEVICES_LIMIT_MS = 120_000;

/** The devices of the machine, and which of them somebody should look at. */
export function useDevices(period_ms: number, pools: Pool[], occurrences: Occurrence[]) {
  const { data, mistake } = useAsked<Device[]>("/v1/devices", period_ms, DEVICES_LIMIT_MS);
  return { data, mistake, troubles: troublesOf(data ?? [], pools, occurrences, Date.now() * 1e6) };
}

/** What fails, or should be watched; nothing if all is well. */
export function Troubles({ troubles }: { troubles: Trouble[] }) {
  if (troubles.length === 0) {
    return null;
  }
  return (
    <section>
      <h2>Devices to look at</h2>
      <Table columns={["Device", "Pool", "State", "What", "Told last"]} empty="-">
        {troubles.map((trouble) => (
          <tr key={`${trouble.path} ${trouble.state} ${trouble.text}`}>
            <td>{trouble.path}</td>
            <td>{trouble.pool ?? "-"}</td>
            <td><State name={trouble.isBad ? "error" : "warning"} text={trouble.state} /></td>
            <td class="wrap">{trouble.text}</td>
            <td class="wrap">{trouble.last ? `${time(trouble.last.time_ns)}: ${trouble.last.text}` : "-"}</td>
          </tr>
        ))}
      </Table>
    </section>
  );
}

export function Devices({ status, occurrences }: { status: Status | null; occurrences: Occurrence[] }) {
  const pools = status?.pools ?? [];
  const { data, mistake, troubles } = useDevices(10_000, pools, occurrences);
  const [open, setOpen] = useState<string | null>(null);
  return (
    <>
      <header>
        <h1>Devices</h1>
        <Ask name="Make a pool…" question={making((data ?? []).map(choiceOf))} disabled={data === null} />
      </header>
      <Wrong mistake={mistake} />
      <Troubles troubles={troubles} />
      <Table columns={["Device", ">Size", ">Block", "Model", "Serial", "Driver", "PCI", ">Node", ">Queues", ">Polled", ">°C", "State", "Used by"]}
        empty={data ? "This machine has no block devices that anybody may see." : "…"}>
        {(data ?? []).flatMap((device) => [
          <tr key={device.name}>
            <td><button type="button" class="opens" aria-expanded={open === device.name} onClick={() => setOpen(open === device.name ? null : device.name)}>{device.path}</button></td>
            <td class="right">{size(device.size_bytes)}</td>
            <td class="right">{device.logical_block_bytes}</td>
            <td>{device.model ?? "-"}</td>
            <td>{device.serial ?? "-"}</td>
            <td>{device.driver ?? "-"}</td>
            <td>{device.pci?.address ?? "-"}</td>
            <td class="right">{device.numa_node ?? "-"}</td>
            <td class="right">{device.nvme?.queues ?? device.queues}</td>
            <td class="right">{device.nvme ? device.nvme.poll_queues : device.polled ? "yes" : "-"}</td>
            <td class="right">{device.nvme?.identified?.smart?.temperature_celsius ?? "-"}</td>
            <td><Health device={device} troubles={troubles.filter(({ path }) => pathsOf(device).includes(path))} /></td>
            <td class="wrap">{uses(device)}</td>
          </tr>,
          ...(open === device.name ? [<tr key={`${device.name} details`}><td colSpan={13} class="details"><Details device={device} pools={pools} last={lastOf(occurrences, ...pathsOf(device))} /></td></tr>] : []),
        ])}
      </Table>
    </>
  );
}

function Health({ device, troubles }: { device: Device; troubles: Trouble[] }) {
  const worst = troubles[0];
  if (worst) {
    return <State name={worst.isBad ? "error" : "warning"} text={worst.state} />;
  }
  return device.nvme?.identified?.smart ? <State name="good" text="good" /> : <>-</>;
}

/** Makes a pool of what is free, or of what is named again because it holds something. */
function making(choices: Choice[]): Question {
  const chosen = (values: Values) => [...linesOf(values.devices), ...linesOf(values.files)];
  const holding = (values: Values) => choices.filter(({ path, holds }) => holds !== undefined && linesOf(values.devices).includes(path));
  return {
    title: "Make a pool",
    text: "Its devices belong to it from then on: what lies on them is gone.",
    fields: (values) => [
      { name: "name", label: "Name" },
      { name: "devices", label: "Devices", kind: "devices", devices: choices, optional: true },
      ...holding(values).map(({ path, holds }) => ({ name: `again ${path}`, label: `${path} holds ${holds}. To overwrite it, type its path`, must: path })),
      { name: "mirror", label: "Mirrors: the first and the second hold the same, the third and the fourth, and so on", kind: "check" },
      { name: "files", label: "Files, beside the devices or instead, one a line", kind: "lines", optional: true, hint: "whole paths on the server" },
      ...(linesOf(values.files).length > 0 ? [
        { name: "size", label: "Size of each file that does not exist yet", optional: true, hint: "as 10GiB; they are made sparse" },
        { name: "again", label: "Files that are overwritten although they hold something, named again, one a line", kind: "lines" as const, optional: true },
      ] : []),
    ],
    note: (values) => values.mirror === "yes" && (
      <ul>{pairs(chosen(values)).map(([first, second]) => <li key={first}>{first} {second === undefined ? <b>has no other side yet</b> : <>and {second} hold the same</>}</li>)}</ul>
    ),
    typed: (values) => (values.name ?? "").trim(),
    button: "Make",
    dangerous: true,
    act: async (values) => {
      const gone = linesOf(values.devices).find((path) => !choices.some((choice) => choice.path === path && choice.refused === undefined));
      if (gone !== undefined) {
        throw new Error(`${gone} is not to be had any more: somebody uses it, or it was taken out`);
      }
      // What was typed into fields that are not shown any more counts for nothing.
      const files = linesOf(values.files);
      const again = [...holding(values).map(({ path }) => path), ...linesOf(values.again).filter((path) => files.includes(path))];
      const size = files.length > 0 ? values.size ?? "" : "";
      const wish = { name: (values.name ?? "").trim(), devices: chosen(values), mirror: values.mirror === "yes", size, again };
      await change("POST", "/v1/pools", poolRequest(wish));
    },
  };
}

const yes = (is: boolean) => (is ? "yes" : "no");

function Details({ device, pools, last }: { device: Device; pools: Pool[]; last: Occurrence | null }) {
  const here = pools.flatMap((pool) => pool.devices).find((known) => pathsOf(device).includes(known.path));
  const cache = device.volatile_write_cache;
  return (
    <div class="columns">
      <section>
        <h3>Device</h3>
        <Pairs rows={[
          ["used by", device.unused_bytes > 0 ? `${uses(device)}; ${size(device.unused_bytes)} of it are unused` : uses(device)],
          ...(device.pool_paths?.length ? [["in pools as", device.pool_paths.join(", ")] as Rows[0]] : []),
          ["told last", last && `${time(last.time_ns)}: ${last.text}`],
          ["content", device.content_error ?? device.content],
          ["partitions", device.partitions.join(", ") || "-"],
          ...(here ? [["served as", `${here.kind}${here.polled ? ", polled" : ""}`] as Rows[0]] : []),
          ...(here?.passthrough_refused ? [["no NVMe commands of our own", here.passthrough_refused] as Rows[0]] : []),
          ["read-only", yes(device.read_only)],
          ["blocks", `${device.logical_block_bytes} B, written ${device.physical_block_bytes} B at once`],
          ["write cache", cache === null ? "-" : cache ? "volatile: a flush makes what was written durable" : "none that loses anything"],
          ["FUA", yes(device.fua)],
          ["discard", yes(device.discard)],
          ["write zeroes", yes(device.write_zeroes)],
          ["longest transfer", size(device.transfer_bytes_max)],
          ["queues", device.queues],
          ["polled", yes(device.polled)],
          ["NUMA node", device.numa_node],
        ]} />
      </section>
      {device.pci && <section><h3>PCI</h3><Pairs rows={pciRows(device.pci)} /></section>}
      {device.nvme && <section><h3>NVMe</h3><Pairs rows={nvmeRows(device.nvme)} /></section>}
      {device.nvme?.identified && <section><h3>Health</h3>{health(device.nvme.identified)}</section>}
    </div>
  );
}

function pciRows(pci: NonNullable<Device["pci"]>): Rows {
  const link = pci.link_speed && pci.link_width ? `${pci.link_speed} x${pci.link_width}` : null;
  const best = `${pci.link_speed_max} x${pci.link_width_max}`;
  return [
    ["address", pci.address],
    ["driver", pci.driver],
    ["link", link && (pci.link_speed_max && best !== link ? `${link} (it can do ${best})` : link)],
    ["interrupts", pci.interrupts.map(({ number, cores }) => `${number} on ${cores}`).join(", ") || "-"],
  ];
}

function nvmeRows(nvme: Nvme): Rows {
  const found = nvme.identified;
  return [
    ["controller", `${nvme.controller}, namespace ${nvme.namespace ?? "-"}`],
    ["pass-through", nvme.generic],
    ["transport", nvme.transport],
    ["firmware", nvme.firmware],
    ["NGUID", nvme.nguid],
    ["EUI64", nvme.eui64],
    ["I/O queues", `${nvme.queues ?? "-"}, of these ${nvme.poll_queues} polled${nvme.poll_queues_unused ? `, which are not used: ${nvme.poll_queues_unused}` : ""}`],
    ...(nvme.identify_error ? [["identify", `not possible: ${nvme.identify_error}`] as Rows[0]] : []),
    ...(found ? identifiedRows(found) : []),
  ];
}

function identifiedRows(found: Identified): Rows {
  const formats = found.formats.map((format) => {
    const metadata = format.metadata_bytes > 0 ? ` + ${format.metadata_bytes} B metadata` : "";
    return `${format.index}: ${format.data_bytes} B${metadata}${format.in_use ? " (in use)" : ""}`;
  });
  return [
    ["NVMe version", found.version],
    ["subsystem", found.subsystem],
    ["LBA formats", formats.join(", ")],
    ["MDTS", found.transfer_bytes_max === null ? "no limit" : size(found.transfer_bytes_max)],
    ["volatile cache", yes(found.volatile_write_cache)],
    ["atomic write", size(found.atomic_write_bytes)],
    ["deallocate", yes(found.deallocate)],
    ["zeroes command", yes(found.write_zeroes)],
  ];
}

function health(found: Identified) {
  const smart: Smart | null = found.smart;
  if (!smart) {
    return <p class="quiet">{found.smart_error ? `cannot be read: ${found.smart_error}` : "not told"}</p>;
  }
  return <Pairs rows={[
    ["health", smart.warnings.length === 0 ? "good" : `CRITICAL: ${smart.warnings.map(words).join(", ")}`],
    ["temperature", smart.temperature_celsius === null ? null : `${smart.temperature_celsius} °C`],
    ["life used", percent(smart.used_percent, 100)],
    ["spare", `${smart.spare_percent}% (threshold ${smart.spare_threshold_percent}%)`],
    ["read", size(smart.read_bytes)],
    ["written", size(smart.written_bytes)],
    ["power on", `${count(smart.power_on_hours)} hours`],
    ["power cycles", `${count(smart.power_cycles)}, ${count(smart.unsafe_shutdowns)} without notice`],
    ["media errors", count(smart.media_errors)],
    ["error log", `${count(smart.error_log_entries)} entries`],
  ]} />;
}
