"""Makes foreign.hlog with somebody else's writer: `pip install hdrhistogram==0.10.8`, then
`python make_foreign_hlog.py foreign.hlog`. The tests read the file that lies here and need neither."""

import sys

from hdrh.histogram import HdrHistogram
from hdrh.log import HistogramLogWriter

START_MS = 1_700_000_000_000


def main():
    with open(sys.argv[1], "w") as file:
        log = HistogramLogWriter(file)
        log.output_comment("[made by python hdrhistogram 0.10.8: 1 ns to 60 s, 3 digits]")
        log.output_log_format_version()
        log.output_base_time(START_MS)
        log.output_legend()
        intervals = [
            [(n * 1000, 1) for n in range(1, 1001)],
            [(50_000, 9990), (12_500_000, 9), (900_000_000, 1)],
            [(1, 3), (59_000_000_000, 70_000)],
        ]
        for index, values in enumerate(intervals):
            histogram = HdrHistogram(1, 60_000_000_000, 3)
            for value, count in values:
                histogram.record_value(value, count)
            histogram.set_start_time_stamp(START_MS + index * 1000)
            histogram.set_end_time_stamp(START_MS + index * 1000 + 1000)
            log.output_interval_histogram(histogram)


main()
