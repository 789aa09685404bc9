// Pools: devices, sides of mirrors, scrubs; opening and closing.

import { at, change } from "./api";
import { DEVICES_LIMIT_MS } from "./devices";
import { count, duration, parseSize, perSecond, size, time } from "./format";
import { useAsked } from "./hooks";
import { type Choice, choiceOf, sideName } from "./making";
import type { Device, Pool, PoolDevice, Scrub, Side, Status } from "./model";
import { Act, Ask, Bar, linesOf, Pairs, type Question, State, Table, type Values, Wrong } from "./parts";

export function Pools({ status }: { status: Status | null }) {
  const { data, mistake } = useAsked<Device[]>("/v1/devices", 30_000, DEVICES_LIMIT_MS);
  const choices = data?.map(choiceOf) ?? null;
  return (
    <>
      <header>
        <h1>Pools</h1>
        <Ask name="Open a pool…" question={open([])} />
      </header>
      <Wrong mistake={mistake} />
      {status?.pools.length === 0 && <p class="empty">No pool yet. They are made on the page <a href="#/devices">Devices</a>.</p>}
      {status?.pools.map((pool) => <OnePool key={pool.name} pool={pool} choices={choices} />)}
    </>
  );
}

function open(devices: string[]): Question {
  return {
    title: "Open a pool",
    text: "A pool that was made before, here or on another machine.",
    fields: [
      { name: "devices", label: "All its devices, one a line", kind: "lines", value: devices.join("\n") },
      { name: "degraded", label: "Although sides of mirrors are missing: leave out what is not there", kind: "check" },
    ],
    button: "Open",
    act: (values) => change("POST", "/v1/pools/open", { devices: linesOf(values.devices), degraded: values.degraded === "yes" }),
  };
}

function OnePool({ pool, choices }: { pool: Pool; choices: Choice[] | null }) {
  const isOpen = ["open", "degraded", "device_lost", "device_shrunk", "stopped"].includes(pool.state);
  const known = pool.known_devices ?? [];
  const close: Question = {
    title: `Close pool ${pool.name}`,
    text: "Its clients are disconnected, and it is not opened at the next start.",
    typed: pool.name,
    button: "Close",
    dangerous: true,
    act: () => change("POST", at`/v1/pools/${pool.name}/close`),
  };
  return (
    <section class="card">
      <header>
        <h2>{pool.name} <State name={pool.state} /></h2>
        {pool.state === "failed" && known.length > 0 && <Act name="Try to open" act={() => change("POST", "/v1/pools/open", { devices: known })} />}
        {pool.state === "failed" && <Ask name="Open otherwise…" question={open(known)} />}
        <Ask name="Close…" question={close} />
      </header>
      {pool.error && <p class="wrong"><b>{pool.error}</b></p>}
      {pool.remarks.map((remark) => <p class="wrong mild" key={remark}>{remark}</p>)}
      <Pairs rows={[
        ["used", <><Bar part={pool.used_bytes} whole={pool.total_bytes} /> {size(pool.used_bytes)} of {size(pool.total_bytes)}</>],
        ["free", size(Math.max(0, pool.total_bytes - pool.used_bytes))],
        ["free soon", size(pool.pending_bytes)],
        ["volumes", count(pool.volumes)],
        ["snapshots", count(pool.snapshots)],
        ["shards", pool.shards],
        ["opened in", duration(pool.recovery_ns)],
        ["id", <code>{pool.id}</code>],
      ]} />
      <Table columns={["Device", "Kind", ">Size", "Direct I/O", "State"]} empty="Its devices are not known.">
        {pool.devices.map((device) => (
          <tr key={device.path}>
            <td>{device.path}</td>
            <td title={device.passthrough_refused}>
              {device.kind}{device.polled && ", polled"}
              {device.passthrough_refused && <small> {device.passthrough_refused}</small>}
            </td>
            <td class="right">{size(device.size_bytes)}</td>
            <td>{device.direct ? "yes" : "no"}</td>
            <td>
              <DeviceState device={device} />
            </td>
          </tr>
        ))}
      </Table>
      {(pool.sides ?? []).length > 0 && <Sides pool={pool} sides={pool.sides ?? []} choices={choices} />}
      {isOpen && <Scrubbing pool={pool} />}
    </section>
  );
}

function DeviceState({ device }: { device: PoolDevice }) {
  if (device.lost_since_ns === undefined && device.stalled_since_ns !== undefined) {
    return <><State name="silent" text="does not answer" /> since {time(device.stalled_since_ns)}</>;
  }
  if (device.lost_since_ns === undefined) {
    return <><State name="there" />{device.unused_bytes > 0 && `, ${size(device.unused_bytes)} unused`}</>;
  }
  const since = ` since ${time(device.lost_since_ns)}`;
  return device.size_bytes < device.pool_bytes
    ? <><State name="lost" text="too small" />{since}: {size(device.pool_bytes)} are needed</>
    : <><State name="lost" />{since}</>;
}

/** Another device in the place of a side, which gets everything copied to it. */
function replacing(pool: Pool, side: Side, choices: Choice[]): Question {
  const name = sideName(side);
  const holding = (values: Values) => choices.find(({ path, holds }) => holds !== undefined && linesOf(values.device)[0] === path);
  return {
    title: `Replace side ${name} of ${pool.name}`,
    text: (
      <p>
        {side.path ?? "The device that is missing"} leaves the pool for good; until all is copied the other side is the only one.
        {side.state === "in_sync" && <b> It is in sync now.</b>}
      </p>
    ),
    fields: (values) => {
      const held = holding(values);
      return [
        { name: "device", label: "By which device", kind: "device", devices: choices, optional: true },
        ...(held ? [{ name: "again", label: `${held.path} holds ${held.holds}. To overwrite it, type its path`, must: held.path }] : []),
        ...(linesOf(values.device).length === 0 ? [
          { name: "file", label: "Or by which file", hint: "a whole path on the server; it is made if it does not exist" },
          { name: "force", label: "If it may be overwritten although it holds something: its path again", optional: true },
        ] : []),
      ];
    },
    typed: name,
    button: "Replace",
    dangerous: true,
    act: async (values) => {
      const device = linesOf(values.device)[0];
      const [file, again] = [(values.file ?? "").trim(), (values.force ?? "").trim()];
      if (device === undefined && again !== "" && again !== file) {
        throw new Error(`${again} is to be overwritten, but is not what was chosen`);
      }
      const force = device === undefined ? again !== "" : holding(values) !== undefined;
      await change("POST", at`/v1/pools/${pool.name}/replace`, { device: name, with: device ?? file, force });
    },
  };
}

function Sides({ pool, sides, choices }: { pool: Pool; sides: Side[]; choices: Choice[] | null }) {
  const resync: Question = {
    title: `Resynchronise ${pool.name}`,
    text: "Tries again to give the sides what they lack.",
    fields: [{ name: "rate", label: "Rate, a second", value: "256MiB", hint: "0: as much as the devices can", optional: true }],
    button: "Resynchronise",
    act: async (values) => change("POST", at`/v1/pools/${pool.name}/resync`, rateOf(values)),
  };
  return (
    <>
      <header>
        <h3>Sides of mirrors</h3>
        {sides.some((side) => side.state !== "in_sync") && <Ask name="Resynchronise…" small question={resync} />}
      </header>
      <Table columns={["Side", "Path", "State", "Progress", ">Left", ">Copied", ">Reads repaired", "Why", ""]} empty="-">
        {sides.map((side) => (
          <tr key={sideName(side)}>
            <td>{sideName(side)}</td>
            <td>{side.path ?? "-"}</td>
            <td><State name={side.state} /></td>
            <td>{side.state === "resync" ? <Bar part={side.copied_bytes} whole={side.copied_bytes + side.left_bytes} /> : "-"}</td>
            <td class="right">{size(side.left_bytes)}</td>
            <td class="right">{size(side.copied_bytes)}</td>
            <td class="right">{count(side.repaired_reads)}</td>
            <td class="wrap">{side.why ?? "-"}{side.since_ns !== undefined && ` (since ${time(side.since_ns)})`}</td>
            <td class="acts"><Ask name="Replace…" small question={replacing(pool, side, choices ?? [])} disabled={choices === null} /></td>
          </tr>
        ))}
      </Table>
    </>
  );
}

/** `{rate_bytes_per_s}`, or nothing if none was given. */
function rateOf(values: Values): { rate_bytes_per_s?: number } {
  const text = (values.rate ?? "").trim();
  if (text === "") {
    return {};
  }
  const rate_bytes_per_s = parseSize(text);
  if (rate_bytes_per_s === null) {
    throw new Error(`${text} is no size: 64MiB, 1GB, 4096`);
  }
  return { rate_bytes_per_s };
}

function Scrubbing({ pool }: { pool: Pool }) {
  const { scrub } = pool;
  const path = at`/v1/pools/${pool.name}/scrub`;
  const going = scrub?.state === "running" || scrub?.state === "paused";
  const start: Question = {
    title: `Scrub ${pool.name}`,
    text: "Reads everything beside the load, and compares it with its checksums; of mirrors both sides, and what one has damaged is repaired.",
    fields: [{ name: "rate", label: "Rate, a second", value: "64MiB", optional: true }],
    button: "Start",
    act: async (values) => change("POST", path, rateOf(values)),
  };
  return (
    <>
      <header>
        <h3>Scrub {scrub && <State name={scrub.damaged_blocks > 0 ? "damaged" : scrub.state} text={scrub.state} />}</h3>
        {!going && <Ask name="Start…" small question={start} />}
        {scrub?.state === "running" && <Act name="Pause" act={() => change("POST", `${path}/pause`)} />}
        {scrub?.state === "paused" && <Act name="Resume" act={() => change("POST", `${path}/resume`, {})} />}
        {going && <Act name="Stop" act={() => change("DELETE", path)} />}
      </header>
      {scrub ? <Report scrub={scrub} going={going} /> : <p class="quiet">Never, as far as the pool remembers.</p>}
    </>
  );
}

function Report({ scrub, going }: { scrub: Scrub; going: boolean }) {
  const whole = Math.max(scrub.used_bytes, scrub.checked_bytes);
  const left = scrub.checked_bytes_per_s > 0 ? ((whole - scrub.checked_bytes) / scrub.checked_bytes_per_s) * 1e9 : null;
  return (
    <>
      <Pairs rows={[
        ["checked", <>{going && <Bar part={scrub.checked_bytes} whole={whole} />} {size(scrub.checked_bytes)}</>],
        ["speed", `${perSecond(scrub.checked_bytes_per_s)}, limit ${scrub.rate_bytes_per_s > 0 ? perSecond(scrub.rate_bytes_per_s) : "none"}`],
        ...(scrub.state === "running" && left !== null ? [["left", `about ${duration(left)}`] as [string, string]] : []),
        ["damaged blocks", count(scrub.damaged_blocks)],
        ["began", time(scrub.started_ns)],
        ["ended", scrub.ended_ns > 0 ? time(scrub.ended_ns) : "-"],
        ["running for", duration(scrub.running_ns)],
        ...(scrub.sides ?? []).map((side) => [side.side, `${size(side.read_bytes)} read, ${side.repaired_blocks} repaired, ${side.unrepaired_blocks} not`] as [string, string]),
      ]} />
      {scrub.damage.length > 0 && <ul class="wrong">{scrub.damage.map((place) => <li key={place}>{place}</li>)}</ul>}
    </>
  );
}
