/* Sets the wall clock of one process: seconds in STILLPOINT_TEST_CLOCK_S are added to it (LD_PRELOAD). */
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

int clock_gettime(clockid_t clock, struct timespec *time) {
    int result = (int)syscall(SYS_clock_gettime, clock, time);
    const char *shift = getenv("STILLPOINT_TEST_CLOCK_S");
    if (result == 0 && clock == CLOCK_REALTIME && shift != NULL) {
        time->tv_sec += atol(shift);
    }
    return result;
}
