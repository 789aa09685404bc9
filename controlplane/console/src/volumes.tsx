// Volumes and what of them is exported.

import { at, change } from "./api";
import { count, parseSize, size, time } from "./format";
import { type Asked, useAsked } from "./hooks";
import type { Export, Status, Volume } from "./model";
import { Ask, Bar, Copy, type Question, Table, Wrong } from "./parts";

const PERIOD_MS = 5000;

export function useVolumes(): Asked<Volume[]> {
  return useAsked<Volume[]>("/v1/volumes", PERIOD_MS);
}

export function Volumes({ status }: { status: Status | null }) {
  const volumes = useVolumes();
  const exports = useAsked<Export[]>("/v1/exports", PERIOD_MS);
  const pools = (status?.pools ?? []).filter((pool) => pool.state !== "failed").map((pool) => pool.name);
  return (
    <>
      <header>
        <h1>Volumes</h1>
        <Ask name="Make a volume…" question={create(pools)} disabled={pools.length === 0} />
      </header>
      <Wrong mistake={volumes.mistake ?? exports.mistake} />
      <Table columns={["Volume", "Pool", ">Size", "Mapped", ">Mapped", ">Block", ">Snapshots", "Clone of", "Change log", "Made", ""]}
        empty={volumes.data ? "No volume yet." : "…"}>
        {(volumes.data ?? []).map((volume) => (
          <tr key={`${volume.pool}/${volume.name}`}>
            <td><b>{volume.name}</b></td>
            <td>{volume.pool}</td>
            <td class="right">{size(volume.size_bytes)}</td>
            <td><Bar part={volume.mapped_bytes} whole={volume.size_bytes} /></td>
            <td class="right">{size(volume.mapped_bytes)}</td>
            <td class="right">{volume.block_bytes}</td>
            <td class="right">{count(volume.snapshots.length)}</td>
            <td>{volume.origin ?? "-"}</td>
            <td>{volume.change_log ?? "-"}</td>
            <td>{time(volume.created_ns)}</td>
            <td class="acts">
              <Ask name="Export…" small question={exporting(volume.name, volume.pool)} />
              <Ask name="Resize…" small question={resize(volume)} />
              <Ask name="Delete…" small question={remove(volume)} />
            </td>
          </tr>
        ))}
      </Table>
      <header><h2>Exports</h2></header>
      <Table columns={["Export", "Shows", "Pool", ">Size", "Access", ">Clients", "Address", ""]} empty={exports.data ? "Nothing is exported: nobody reaches a volume." : "…"}>
        {(exports.data ?? []).map((shown) => (
          <tr key={shown.name}>
            <td><b>{shown.name}</b></td>
            <td>{shown.view}</td>
            <td>{shown.pool}</td>
            <td class="right">{size(shown.size_bytes)}</td>
            <td>{shown.read_only ? "read-only" : "read-write"}{shown.allow_snapshots && ", snapshots"}</td>
            <td class="right">{shown.connections}</td>
            <td>{shown.uris.map((uri) => <Copy key={uri} text={uri} />)}</td>
            <td class="acts"><Ask name="Delete…" small question={unexport(shown)} /></td>
          </tr>
        ))}
      </Table>
    </>
  );
}

function bytesOf(text: string | undefined): number {
  const bytes = parseSize(text ?? "");
  if (bytes === null) {
    throw new Error(`${text} is no size: 10GiB, 500MB, 4096`);
  }
  return bytes;
}

function create(pools: string[]): Question {
  return {
    title: "Make a volume",
    text: "It takes space only as it is written.",
    fields: [
      { name: "name", label: "Name" },
      { name: "size", label: "Size", hint: "as 10GiB; a multiple of 4096 bytes" },
      { name: "pool", label: "Pool", kind: "choice", choices: pools, value: pools[0] ?? "" },
      { name: "block", label: "Logical blocks, bytes", kind: "choice", choices: ["4096", "512"], value: "4096" },
    ],
    button: "Make",
    act: async ({ name, size, pool, block }) => change("POST", "/v1/volumes", { name, size_bytes: bytesOf(size), pool, block_bytes: Number(block) }),
  };
}

/** What `volume` or `volume@snapshot` is exported as. */
export function exporting(view: string, pool: string): Question {
  const isVolume = !view.includes("@");
  return {
    title: `Export ${view}`,
    fields: [
      { name: "name", label: "The name clients ask for", value: view },
      ...(isVolume ? [
        { name: "read_only", label: "Refuse writes", kind: "check" as const },
        { name: "allow_snapshots", label: "Clients may take snapshots", kind: "check" as const },
      ] : []),
    ],
    button: "Export",
    act: ({ name, read_only, allow_snapshots }) =>
      change("POST", "/v1/exports", { view, name, pool, read_only: read_only === "yes", allow_snapshots: allow_snapshots === "yes" }),
  };
}

function unexport(shown: Export): Question {
  return {
    title: `Delete export ${shown.name}`,
    text: `${shown.view} stays as it is; ${shown.connections === 0 ? "no client is connected" : `${shown.connections} clients are disconnected`}.`,
    button: "Delete",
    dangerous: true,
    act: () => change("DELETE", at`/v1/exports/${shown.name}`),
  };
}

function resize(volume: Volume): Question {
  return {
    title: `Resize ${volume.name}`,
    text: `It is ${size(volume.size_bytes)} now.`,
    fields: [
      { name: "size", label: "The new size", value: `${volume.size_bytes}` },
      { name: "force", label: "Make it smaller: what is beyond the new end is discarded", kind: "check" },
    ],
    button: "Resize",
    act: async (values) => change("POST", at`/v1/volumes/${volume.name}/resize?pool=${volume.pool}`, { size_bytes: bytesOf(values.size), force: values.force === "yes" }),
  };
}

function remove(volume: Volume): Question {
  const snapshots = volume.snapshots.length;
  return {
    title: `Delete volume ${volume.name}`,
    text: `${size(volume.mapped_bytes)} that it maps go, and nothing brings them back.`,
    fields: snapshots > 0 ? [{ name: "with_snapshots", label: snapshots === 1 ? "Its snapshot too" : `Its ${snapshots} snapshots too`, kind: "check" }] : [],
    typed: volume.name,
    button: "Delete",
    dangerous: true,
    act: ({ with_snapshots }) => change("DELETE", at`/v1/volumes/${volume.name}?pool=${volume.pool}` + (with_snapshots === "yes" ? "&with_snapshots=true" : "")),
  };
}
