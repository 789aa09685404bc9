// What the API and the console say, as far as the page shows it (controlplane/appliance/src/api/model.rs).

export interface Mistake {
  kind: string;
  message: string;
  hint?: string;
}

export interface Side {
  device: number;
  side: number;
  path?: string;
  state: "in_sync" | "out" | "resync";
  why?: string;
  since_ns?: number;
  left_bytes: number;
  copied_bytes: number;
  repaired_reads: number;
}

export interface Scrub {
  state: "running" | "paused" | "done" | "stopped";
  checked_bytes: number;
  used_bytes: number;
  damaged_blocks: number;
  damage: string[];
  started_ns: number;
  ended_ns: number;
  running_ns: number;
  rate_bytes_per_s: number;
  checked_bytes_per_s: number;
  sides?: { side: string; read_bytes: number; repaired_blocks: number; unrepaired_blocks: number }[];
}

export interface PoolDevice {
  path: string;
  kind: string;
  size_bytes: number;
  pool_bytes: number;
  unused_bytes: number;
  direct: boolean;
  polled: boolean;
  passthrough_refused?: string;
  stalled_since_ns?: number;
  lost_since_ns?: number;
}

export interface Pool {
  name: string;
  state: "open" | "degraded" | "device_lost" | "device_shrunk" | "stopped" | "failed" | "opening";
  error?: string;
  id: string;
  shards: number;
  devices: PoolDevice[];
  /** Of a pool that is not open. */
  known_devices?: string[];
  total_bytes: number;
  used_bytes: number;
  pending_bytes: number;
  volumes: number;
  snapshots: number;
  recovery_ns: number;
  sides?: Side[];
  remarks: string[];
  scrub?: Scrub;
}

export interface Shard {
  pool: string;
  shard: number;
  reads: number;
  writes: number;
  corrupt_blocks: number;
  repaired_blocks: number;
  device_errors: number;
  stopped: boolean;
}

export interface Processor {
  processor: number;
  core: number | null;
  sessions: number;
  requests: number;
  forwarded: number;
  polls: boolean;
  buffer_bytes_used: number;
  buffer_bytes: number;
  shards: Shard[];
}

export interface Status {
  version: string;
  pid: number;
  uptime_ns: number;
  listeners: string[];
  connections: number;
  connection_limit: number;
  processors: Processor[];
  pools: Pool[];
}

export interface Volume {
  name: string;
  pool: string;
  id: number;
  size_bytes: number;
  block_bytes: number;
  object_bytes: number;
  mapped_bytes: number;
  created_ns: number;
  origin: string | null;
  change_log: string | null;
  snapshots: string[];
  exports: string[];
}

export interface Export {
  name: string;
  view: string;
  pool: string;
  size_bytes: number;
  read_only: boolean;
  allow_snapshots: boolean;
  connections: number;
  uris: string[];
}

export interface Snapshot {
  name: string;
  pool: string;
  id: number;
  volumes: { name: string; size_bytes: number }[];
  time_stamp_ns: number;
  locked_until_ns: number;
  schedule?: string;
  durable_ns: number;
  hold_ns_max: number;
  answers_held: number;
  answer_held_ns_max: number;
  log_bytes: number;
  metadata_bytes: number;
  holds: { shard: number; hold_ns: number; answers_held: number; answer_held_ns_max: number }[];
  intermediate_snapshots?: {
    volume: string;
    shard: number;
    processor: number;
    objects: number;
    point_in_time_copy: { epoch: number; mapped_bytes: number };
    change_log: { blocks: number; bytes: number; first_change_ns: number; last_change_ns: number };
  }[];
}

export interface Schedule {
  name: string;
  pool: string;
  volumes: string[];
  every_ns?: number;
  cron?: string;
  time_zone: string;
  keep: Record<string, number>;
  state: "active" | "paused";
  created_ns: number;
  last_run_ns: number;
  last_error?: string;
  next_runs_ns: number[];
  runs: number;
  missed: number;
  failed: number;
  pruned: number;
  snapshots: number;
  kept?: { name: string; time_stamp_ns: number; pruned_next: boolean; kept_by: string[] }[];
}

export interface Stage {
  processor: number;
  kind: string;
  stage: string;
  count: number;
  sum_ns: number;
  counted: [number, number][];
}

export interface Occurrence {
  number: number;
  time_ns: number;
  level: "info" | "warning" | "error";
  kind: string;
  pool: string;
  subject: string;
  text: string;
}

export interface Occurrences {
  events: Occurrence[];
  last: number;
}

export interface Smart {
  warnings: string[];
  temperature_celsius: number | null;
  spare_percent: number;
  spare_threshold_percent: number;
  used_percent: number;
  read_bytes: number;
  written_bytes: number;
  power_on_hours: number;
  power_cycles: number;
  unsafe_shutdowns: number;
  media_errors: number;
  error_log_entries: number;
}

export interface Identified {
  version: string;
  subsystem: string;
  formats: { index: number; data_bytes: number; metadata_bytes: number; relative_performance: number; in_use: boolean }[];
  transfer_bytes_max: number | null;
  volatile_write_cache: boolean;
  atomic_write_bytes: number;
  deallocate: boolean;
  write_zeroes: boolean;
  smart: Smart | null;
  smart_error?: string;
}

export interface Nvme {
  controller: string;
  namespace: number | null;
  generic: string | null;
  transport: string | null;
  firmware: string | null;
  nguid: string | null;
  eui64: string | null;
  queues: number | null;
  poll_queues: number;
  poll_queues_unused?: string;
  identified: Identified | null;
  identify_error?: string;
}

export interface Device {
  name: string;
  path: string;
  size_bytes: number;
  logical_block_bytes: number;
  physical_block_bytes: number;
  read_only: boolean;
  model: string | null;
  serial: string | null;
  driver: string | null;
  volatile_write_cache: boolean | null;
  fua: boolean;
  discard: boolean;
  write_zeroes: boolean;
  transfer_bytes_max: number;
  queues: number;
  polled: boolean;
  numa_node: number | null;
  pci: {
    address: string;
    driver: string | null;
    link_speed: string | null;
    link_speed_max: string | null;
    link_width: number | null;
    link_width_max: number | null;
    interrupts: { number: number; cores: string }[];
  } | null;
  nvme: Nvme | null;
  partitions: string[];
  used_by: { kind: string; name: string }[];
  unused_bytes: number;
  /** Other paths by which pools name it. */
  pool_paths?: string[];
  content: string | null;
  content_error?: string;
}

export interface KindFigures {
  per_s: number;
  bytes_per_s: number;
  p50_ns: number | null;
  p99_ns: number | null;
}

export interface Point {
  time_ms: number;
  figures: { read: KindFigures; write: KindFigures; processors_per_s: number[] } | null;
}

export interface History {
  points: Point[];
  away: { since_ms: number; why: string } | null;
  newest: Newest | null;
}

/** The newest event that there is. */
export interface Newest {
  last: number;
  started_ms: number;
}
