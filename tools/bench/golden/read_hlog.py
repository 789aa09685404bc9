"""Reads a log of HdrHistogram (version 2, compressed) from standard input, with nothing but python's standard library, after the
format's description (HdrHistogram, "Histogram log format" and "V2 encoding"). For each interval a line: start, length, longest (as the
line itself says), requests, p50, p99, max."""

import base64
import struct
import sys
import zlib

COMPRESSED, PLAIN = 0x1C849304, 0x1C849303


def counts(payload):
    """Of each slot: zigzag LEB128 of at most 9 bytes; a negative one is so many empty slots."""
    at, slot = 0, 0
    while at < len(payload):
        number, shift = 0, 0
        while True:
            byte = payload[at]
            at += 1
            if shift == 56:
                number |= byte << shift
                break
            number |= (byte & 0x7F) << shift
            if not byte & 0x80:
                break
            shift += 7
        number = (number >> 1) ^ -(number & 1)
        if number < 0:
            slot -= number
        else:
            if number:
                yield slot, number
            slot += 1


def decode(text):
    packed = base64.b64decode(text, validate=True)
    cookie, length = struct.unpack_from(">II", packed)
    assert cookie & ~0xF0 == COMPRESSED & ~0xF0, hex(cookie)
    assert len(packed) == 8 + length, (len(packed), length)
    plain = zlib.decompress(packed[8:])
    cookie, length, offset, digits, lowest, _, ratio = struct.unpack_from(">IIIIQQd", plain)
    assert cookie & ~0xF0 == PLAIN & ~0xF0, hex(cookie)
    assert (offset, ratio) == (0, 1.0), (offset, ratio)
    assert len(plain) == 40 + length, (len(plain), length)
    half_bits = (2 * 10**digits - 1).bit_length() - 1
    half, unit_bits = 1 << half_bits, lowest.bit_length() - 1
    for slot, count in counts(plain[40:]):
        bucket, within = (slot >> half_bits) - 1, (slot & (half - 1)) + half
        if bucket < 0:
            bucket, within = 0, within - half
        # The highest value that falls into the slot.
        yield (((within + 1) << (bucket + unit_bits)) - 1), count


def at_quantile(values, quantile):
    total = sum(count for _, count in values)
    seen = 0
    for value, count in values:
        seen += count
        if seen >= quantile * total:
            return value
    return 0


for line in sys.stdin:
    if line.startswith("#") or line.startswith('"'):
        continue
    start, length, longest, histogram = line.strip().split(",")
    values = sorted(decode(histogram))
    total = sum(count for _, count in values)
    print(start, length, longest, total, at_quantile(values, 0.5), at_quantile(values, 0.99), values[-1][0])
