/* Repeats recorded calls of the kernels and compares all memory that they wrote, bit for bit:
   replay LIBRARY RECORDING. kernel_calls.py writes recordings. Exits with 1 at the first difference. */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#ifdef _WIN32
#include <windows.h>
#define OPEN(path) (void *)LoadLibraryA(path)
#define FIND(library, name) (void *)GetProcAddress((HMODULE)library, name)
#else
#include <dlfcn.h>
#define OPEN(path) dlopen(path, RTLD_NOW)
#define FIND(library, name) dlsym(library, name)
#endif

enum { NAME = 64, MOST = 64, ARGUMENTS = 5 };

typedef struct {
    int64_t size, compared;
    char *memory, *after;
} Buffer;

typedef int64_t Kernel(intptr_t, intptr_t, intptr_t, intptr_t, intptr_t);

static FILE *file;

static void get(void *to, size_t bytes) {
    if (bytes && fread(to, 1, bytes, file) != bytes) {
        fprintf(stderr, "the recording is truncated\n");
        exit(1);
    }
}

static int64_t number(void) {
    int64_t n;
    get(&n, sizeof n);
    return n;
}

/* New memory that begins where a cache line does, as torch's. */
static char *lines(int64_t bytes) { return (char *)(((intptr_t)calloc(1, bytes + 128) + 127) & -64); }

static void repeat(void *library) {
    char name[NAME];
    Buffer buffers[MOST];
    intptr_t a[ARGUMENTS] = {0};
    get(name, NAME);
    const int64_t count = number(), pointers = number(), arguments = number(), want = number();
    for (int64_t i = 0; i < count; i++) {
        Buffer *b = &buffers[i];
        b->size = number(), b->compared = number();
        b->memory = lines(b->size), b->after = lines(b->size);
        get(b->memory, b->size);
        get(b->after, b->size);
    }
    for (int64_t i = 0; i < pointers; i++) {
        const int64_t in = number(), at = number(), target = number(), place = number();
        char *const pointer = buffers[target].memory + place;
        memcpy(buffers[in].memory + at, &pointer, sizeof pointer);
    }
    for (int64_t i = 0; i < arguments; i++) {
        const int64_t target = number(), place = number();
        a[i] = target < 0 ? (intptr_t)place : (intptr_t)(buffers[target].memory + place);
    }
    Kernel *kernel = (Kernel *)FIND(library, name);
    if (!kernel) {
        fprintf(stderr, "%s: not in the library\n", name);
        exit(1);
    }
    const int64_t result = kernel(a[0], a[1], a[2], a[3], a[4]);
    if (want != INT64_MIN && result != want) {
        fprintf(stderr, "%s returns %lld, not %lld\n", name, (long long)result, (long long)want);
        exit(1);
    }
    for (int64_t i = 0; i < count; i++)
        for (int64_t k = 0; buffers[i].compared && k < buffers[i].size; k++)
            if (buffers[i].memory[k] != buffers[i].after[k]) {
                fprintf(stderr, "%s: byte %lld of buffer %lld differs\n", name, (long long)k, (long long)i);
                exit(1);
            }
}

int main(int count, char **words) {
    void *library = count == 3 ? OPEN(words[1]) : 0;
    if (!library || !(file = fopen(words[2], "rb"))) {
        fprintf(stderr, "cannot open the library or the recording\n");
        return 1;
    }
    const int64_t calls = number();
    for (int64_t i = 0; i < calls; i++) repeat(library);
    printf("%lld calls: the same bits\n", (long long)calls);
    return 0;
}
