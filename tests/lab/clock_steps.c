// Preloaded: the wall clock steps by years at every reading, back and forth.

#define _GNU_SOURCE
#include <dlfcn.h>
#include <time.h>

static const long YEAR = 365 * 24 * 60 * 60;

int clock_gettime(clockid_t clock, struct timespec *now)
{
	static int (*of_libc)(clockid_t, struct timespec *);
	static unsigned readings;
	if (!of_libc)
		*(void **)&of_libc = dlsym(RTLD_NEXT, "clock_gettime");
	int result = of_libc(clock, now);
	if (!result && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
		unsigned reading = __sync_fetch_and_add(&readings, 1);
		now->tv_sec += (reading % 2 ? 10 : -10) * YEAR;
	}
	return result;
}
