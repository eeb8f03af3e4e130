// The part of GNU's OpenMP runtime that the kernels call, by pthreads alone, in place of libgomp under ThreadSanitizer.
//
// libgomp is not compiled for the sanitizer, which sees none of its barriers and calls all that they order a race. What
// is here synchronises by what the sanitizer knows: pthread_create, pthread_join and pthread_barrier_wait. A function
// that the kernels call and that is missing here does not link. With -DUNORDERED barriers hold threads up and order nothing,
// which the sanitizer must see.

#include <pthread.h>
#include <sched.h>

#include <atomic>
#include <vector>

namespace {

struct Team {
  void (*function)(void *);
  void *data;
  int size;
  pthread_barrier_t barrier;
  std::atomic<long> singles{0}, arrivals{0};
};

struct Member {
  Team *team;
  int number;
  long singles = 0, barriers = 0;  // that it has come to
};

thread_local Member *me = nullptr;

void *run(void *member) {
  me = static_cast<Member *>(member);
  me->team->function(me->team->data);
  me = nullptr;
  return nullptr;
}

}  // namespace

extern "C" {

int omp_get_num_threads() { return me ? me->team->size : 1; }
int omp_get_thread_num() { return me ? me->number : 0; }
int omp_get_max_threads() { return 1; }

void GOMP_barrier() {
#ifdef UNORDERED
  const long all = ++me->barriers * me->team->size;
  me->team->arrivals.fetch_add(1, std::memory_order_relaxed);
  while (me->team->arrivals.load(std::memory_order_relaxed) < all) sched_yield();
#else
  pthread_barrier_wait(&me->team->barrier);
#endif
}

// The first of the team to come to its next single region. Relaxed: this orders nothing, the barrier that follows does.
bool GOMP_single_start() {
  long mine = me->singles++;
  return me->team->singles.compare_exchange_strong(mine, mine + 1, std::memory_order_relaxed);
}

void GOMP_parallel(void (*function)(void *), void *data, unsigned threads, unsigned) {
  Team team;
  team.function = function, team.data = data, team.size = int(threads);
  pthread_barrier_init(&team.barrier, nullptr, threads);
  std::vector<Member> members;
  for (int k = 0; k < team.size; ++k) members.push_back({&team, k});
  std::vector<pthread_t> others(threads);
  for (int k = 1; k < team.size; ++k) pthread_create(&others[k], nullptr, run, &members[k]);
  run(&members[0]);
  for (int k = 1; k < team.size; ++k) pthread_join(others[k], nullptr);
  pthread_barrier_destroy(&team.barrier);
}

}  // extern "C"
