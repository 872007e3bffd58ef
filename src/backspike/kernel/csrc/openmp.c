/* A small OpenMP runtime on a pool of threads, for compilers that come without one (setup.py then
   defines OWN_OPENMP). It has what clang compiles our `omp` pragmas to: the interface of LLVM's
   runtime (kmp.h), without nested regions. What a new pragma needs beyond that is an error of the
   linker. Results do not depend on the number of threads, so they are those of any other runtime.

   One region at a time has the pool; a region that starts meanwhile on another thread of the program
   runs on that thread alone, as OpenMP allows. */

#ifdef OWN_OPENMP

#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#define HIDDEN __attribute__((visibility("hidden"))) /* so that no other runtime takes its place */
enum { THREADS = 256, ARGUMENTS = 10, ATOMIC = 2 };

/* -------------------------------------------------------------------------------------- threads */

#ifdef _WIN32
#include <windows.h>
typedef SRWLOCK Mutex;
typedef CONDITION_VARIABLE Condition;
typedef DWORD Returned;
#define MUTEX SRWLOCK_INIT
#define CONDITION CONDITION_VARIABLE_INIT
#define ENTRY WINAPI
static void lock(Mutex *m) { AcquireSRWLockExclusive(m); }
static void unlock(Mutex *m) { ReleaseSRWLockExclusive(m); }
static void await(Condition *c, Mutex *m) { SleepConditionVariableSRW(c, m, INFINITE, 0); }
static void wake(Condition *c) { WakeAllConditionVariable(c); }
#else
#include <pthread.h>
typedef pthread_mutex_t Mutex;
typedef pthread_cond_t Condition;
typedef void *Returned;
#define MUTEX PTHREAD_MUTEX_INITIALIZER
#define CONDITION PTHREAD_COND_INITIALIZER
#define ENTRY
static void lock(Mutex *m) { pthread_mutex_lock(m); }
static void unlock(Mutex *m) { pthread_mutex_unlock(m); }
static void await(Condition *c, Mutex *m) { pthread_cond_wait(c, m); }
static void wake(Condition *c) { pthread_cond_broadcast(c); }
#endif

typedef void Task(int32_t *, int32_t *, ...);

typedef struct {
    int threads;       /* of this region */
    int arrived, turn; /* at the barrier; how often it has opened */
    int64_t next;      /* the next chunk of a loop with a dynamic schedule */
} Team;

typedef struct {
    Mutex mutex;
    Condition work, done, barrier;
    int workers, running, taken;
    unsigned region; /* counts the regions */
    Team team;
    Task *task;
    void *arguments[ARGUMENTS];
} Pool;

#define NEW_POOL {.mutex = MUTEX, .work = CONDITION, .done = CONDITION, .barrier = CONDITION}
static Pool pool = NEW_POOL;

static _Thread_local Team alone = {.threads = 1}, *team; /* null outside a region of the pool */
static _Thread_local int thread, wanted = 1;
static _Thread_local struct { int64_t first, last, step, chunk; } loop;

static Team *current(void) { return team ? team : &alone; }

/* A task has two to twelve parameters; those that it does not have it ignores. */
static void call(Task *task, void **a) {
    typedef void All(int32_t *, int32_t *, void *, void *, void *, void *, void *, void *, void *, void *, void *, void *);
    int32_t id = thread, bound = 0;
    ((All *)task)(&id, &bound, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8], a[9]);
}

static void take_part(int number) {
    team = &pool.team;
    thread = number;
    call(pool.task, pool.arguments);
    team = 0;
    thread = 0;
}

static Returned ENTRY work(void *number) {
    const int me = (int)(intptr_t)number;
    unsigned before = 0;
    lock(&pool.mutex);
    for (;;) {
        while (pool.region == before || me >= pool.team.threads) await(&pool.work, &pool.mutex);
        before = pool.region;
        unlock(&pool.mutex);
        take_part(me);
        lock(&pool.mutex);
        if (!--pool.running) wake(&pool.done);
    }
    return 0;
}

#ifdef _WIN32
static int start(intptr_t number) {
    HANDLE handle = CreateThread(0, 0, work, (void *)number, 0, 0);
    return handle && CloseHandle(handle);
}
#else
static void forget(void) { pool = (Pool)NEW_POOL; } /* a forked process has none of the threads */

static int start(intptr_t number) {
    static int registered;
    pthread_t one;
    if (!registered) registered = !pthread_atfork(0, 0, forget);
    return registered && !pthread_create(&one, 0, work, (void *)number) && !pthread_detach(one);
}
#endif

/* Takes the pool for this many threads, or fewer; returns 1 if there is no other thread to have. */
static int take_pool(int threads) {
    threads = threads < THREADS ? threads : THREADS;
    if (threads == 1 || pool.taken) return 1;
    while (pool.workers < threads - 1 && start(pool.workers + 1)) pool.workers++;
    threads = pool.workers < threads - 1 ? pool.workers + 1 : threads;
    pool.taken = threads > 1;
    return threads;
}

/* -------------------------------------------------------------------- what clang's code refers to */

HIDDEN int omp_get_thread_num(void) { return thread; }

HIDDEN int32_t __kmpc_global_thread_num(void *where) { return (void)where, thread; }

HIDDEN void __kmpc_push_num_threads(void *where, int32_t id, int32_t threads) { (void)where, (void)id, wanted = threads; }

HIDDEN void __kmpc_serialized_parallel(void *where, int32_t id) {
    (void)where, (void)id;
    wanted = 1;
    alone.next = 0;
}

HIDDEN void __kmpc_end_serialized_parallel(void *where, int32_t id) { (void)where, (void)id; }

HIDDEN void __kmpc_fork_call(void *where, int32_t count, Task *task, ...) {
    void *arguments[ARGUMENTS] = {0};
    va_list list;
    if (count > ARGUMENTS) __builtin_trap();
    va_start(list, task);
    for (int i = 0; i < count; i++) arguments[i] = va_arg(list, void *);
    va_end(list);
    lock(&pool.mutex);
    const int threads = take_pool(wanted);
    if (threads == 1) {
        unlock(&pool.mutex);
        __kmpc_serialized_parallel(where, 0);
        call(task, arguments);
        return;
    }
    wanted = 1;
    pool.task = task;
    for (int i = 0; i < ARGUMENTS; i++) pool.arguments[i] = arguments[i];
    pool.team = (Team){.threads = threads};
    pool.running = threads - 1;
    pool.region++;
    wake(&pool.work);
    unlock(&pool.mutex);
    take_part(0);
    lock(&pool.mutex);
    while (pool.running) await(&pool.done, &pool.mutex);
    pool.taken = 0;
    unlock(&pool.mutex);
}

HIDDEN void __kmpc_barrier(void *where, int32_t id) {
    Team *t = current();
    (void)where, (void)id;
    lock(&pool.mutex);
    const int turn = t->turn;
    if (++t->arrived == t->threads) {
        t->arrived = 0;
        t->next = 0;
        t->turn++;
        wake(&pool.barrier);
    }
    while (t->turn == turn) await(&pool.barrier, &pool.mutex);
    unlock(&pool.mutex);
}

/* The share of this thread of the iterations *lower ... *upper, one after the other. */
HIDDEN void __kmpc_for_static_init_8(void *where, int32_t id, int32_t schedule, int32_t *last, int64_t *lower, int64_t *upper,
                                     int64_t *stride, int64_t step, int64_t chunk) {
    const int64_t first = *lower, n = (*upper - first) / step + 1, threads = current()->threads;
    const int64_t from = n * thread / threads, to = n * (thread + 1) / threads;
    (void)where, (void)id, (void)schedule, (void)chunk;
    *stride = n * step;
    *last = from < to && to == n;
    if (from < to) {
        *lower = first + from * step;
        *upper = first + (to - 1) * step;
    } else {
        *lower = *upper + step;
    }
}

HIDDEN void __kmpc_for_static_init_8u(void *where, int32_t id, int32_t schedule, int32_t *last, int64_t *lower, int64_t *upper,
                                      int64_t *stride, int64_t step, int64_t chunk) {
    __kmpc_for_static_init_8(where, id, schedule, last, lower, upper, stride, step, chunk);
}

HIDDEN void __kmpc_for_static_fini(void *where, int32_t id) { (void)where, (void)id; }

HIDDEN void __kmpc_dispatch_init_8(void *where, int32_t id, int32_t schedule, int64_t first, int64_t last, int64_t step,
                                   int64_t chunk) {
    (void)where, (void)id, (void)schedule;
    loop.first = first, loop.last = last, loop.step = step, loop.chunk = chunk;
}

HIDDEN int32_t __kmpc_dispatch_next_8(void *where, int32_t id, int32_t *last, int64_t *lower, int64_t *upper, int64_t *stride) {
    const int64_t k = __atomic_fetch_add(&current()->next, 1, __ATOMIC_RELAXED);
    (void)where, (void)id;
    *lower = loop.first + k * loop.chunk * loop.step;
    *upper = *lower + (loop.chunk - 1) * loop.step;
    if (*upper > loop.last) *upper = loop.last;
    *last = *upper == loop.last;
    *stride = loop.step;
    return *lower <= loop.last;
}

HIDDEN void __kmpc_dispatch_deinit(void *where, int32_t id) { (void)where, (void)id; }

/* Tells the code to reduce with atomic instructions. */
HIDDEN int32_t __kmpc_reduce_nowait(void *where, int32_t id, int32_t count, size_t size, void *data, void (*add)(void *, void *),
                                    void *critical) {
    (void)where, (void)id, (void)count, (void)size, (void)data, (void)add, (void)critical;
    return ATOMIC;
}

HIDDEN void __kmpc_end_reduce_nowait(void *where, int32_t id, void *critical) { (void)where, (void)id, (void)critical; }

#else
typedef int nothing; /* ISO C forbids an empty file */
#endif
