/* Threads that go through a step together.
 *
 * A function of theirs is called by all threads of a parallel region, shares its work out with an
 * orphaned `omp for nowait`, and leaves it to the caller to wait. Called alone by Python it is
 * wrapped in a region of its own. OpenMP's barrier sleeps as early as the whole process is told to,
 * which is soon, for the sake of who else needs the processors; between two products of a step the
 * others are only microseconds behind, and being woken takes longer than that.
 */

#ifndef TEAM_H
#define TEAM_H

#include <omp.h>
#include <sched.h>
#include <stdatomic.h>

#include "elements.h"

/* Looks at the others before a thread that waits lets somebody else have its processor: about 30
 * microseconds. */
#define LOOKS 1500

struct team {
    atomic_int arrived, meeting;
};

/* Wait until all threads of the region are here. */
static void meet(struct team *team) {
    int meeting = atomic_load(&team->meeting);
    if (atomic_fetch_add(&team->arrived, 1) + 1 == omp_get_num_threads()) {
        atomic_store(&team->arrived, 0);
        atomic_store(&team->meeting, meeting + 1);
        return;
    }
    for (int looks = 0; atomic_load(&team->meeting) == meeting; looks++) {
        if (looks < LOOKS) {
            __builtin_ia32_pause();
        } else {
            sched_yield();
        }
    }
}

#endif
