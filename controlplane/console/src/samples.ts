// What tests take for answers of the API.

import type { Device, Nvme, Pool, Smart } from "./model";

export function device(name: string, more: Partial<Device> = {}): Device {
  return {
    name,
    path: `/dev/${name}`,
    size_bytes: 2 ** 30,
    logical_block_bytes: 512,
    physical_block_bytes: 4096,
    read_only: false,
    model: null,
    serial: null,
    driver: null,
    volatile_write_cache: null,
    fua: false,
    discard: false,
    write_zeroes: false,
    transfer_bytes_max: 0,
    queues: 1,
    polled: false,
    numa_node: null,
    pci: null,
    nvme: null,
    partitions: [],
    used_by: [],
    unused_bytes: 0,
    content: null,
    ...more,
  };
}

export function nvme(more: Partial<Smart>): Nvme {
  const smart: Smart = {
    warnings: [],
    temperature_celsius: 40,
    spare_percent: 100,
    spare_threshold_percent: 10,
    used_percent: 1,
    read_bytes: 0,
    written_bytes: 0,
    power_on_hours: 0,
    power_cycles: 0,
    unsafe_shutdowns: 0,
    media_errors: 0,
    error_log_entries: 0,
    ...more,
  };
  const identified = { version: "", subsystem: "", formats: [], transfer_bytes_max: null, volatile_write_cache: false, atomic_write_bytes: 0, deallocate: false, write_zeroes: false, smart };
  return { controller: "nvme0", namespace: 1, generic: "/dev/ng0n1", transport: null, firmware: null, nguid: null, eui64: null, queues: null, poll_queues: 0, identified };
}

export function pool(name: string, more: Partial<Pool> = {}): Pool {
  return { name, state: "open", id: name, shards: 2, devices: [], total_bytes: 0, used_bytes: 0, pending_bytes: 0, volumes: 0, snapshots: 0, recovery_ns: 0, remarks: [], ...more };
}
