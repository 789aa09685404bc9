// The block devices of the machine.

import { useState } from "preact/hooks";
import { count, percent, size, words } from "./format";
import { useAsked } from "./hooks";
import type { Device, Identified, Nvme, Pool, Smart, Status } from "./model";
import { Pairs, State, Table, Wrong } from "./parts";

type Rows = Parameters<typeof Pairs>[0]["rows"];

export function Devices({ status }: { status: Status | null }) {
  const { data, mistake } = useAsked<Device[]>("/v1/devices", 10_000);
  const [open, setOpen] = useState<string | null>(null);
  return (
    <>
      <header><h1>Devices</h1></header>
      <Wrong mistake={mistake} />
      <Table columns={["Device", ">Size", ">Block", "Model", "Serial", "Driver", "PCI", ">Node", ">Queues", ">Polled", ">°C", "Health", "Used by"]}
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
            <td><Health nvme={device.nvme} /></td>
            <td class="wrap">{uses(device)}</td>
          </tr>,
          ...(open === device.name ? [<tr key={`${device.name} details`}><td colSpan={13} class="details"><Details device={device} pools={status?.pools ?? []} /></td></tr>] : []),
        ])}
      </Table>
    </>
  );
}

function Health({ nvme }: { nvme: Nvme | null }) {
  const smart = nvme?.identified?.smart;
  if (!smart) {
    return <>-</>;
  }
  return smart.warnings.length === 0 ? <State name="good" text="good" /> : <State name="error" text={smart.warnings.join(", ")} />;
}

/** Who uses it, or what keeps a pool from being made on it. */
function uses(device: Device): string {
  const used = device.used_by.map(({ kind, name }) => ({ pool: `pool ${name}`, mount: `mounted on ${name}`, swap: "swap", holder: `part of ${name}` })[kind] ?? `${kind} ${name}`);
  if (used.length > 0) {
    return used.join(", ");
  }
  if (device.partitions.length > 0) {
    return `has partitions: ${device.partitions.join(", ")}`;
  }
  return device.content !== null ? `holds ${device.content}` : device.content_error !== undefined ? "not readable" : "-";
}

const yes = (is: boolean) => (is ? "yes" : "no");

function Details({ device, pools }: { device: Device; pools: Pool[] }) {
  const here = pools.flatMap((pool) => pool.devices).find((known) => known.path === device.path || known.path === device.nvme?.generic);
  const cache = device.volatile_write_cache;
  return (
    <div class="columns">
      <section>
        <h3>Device</h3>
        <Pairs rows={[
          ["used by", device.unused_bytes > 0 ? `${uses(device)}; ${size(device.unused_bytes)} of it are unused` : uses(device)],
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
