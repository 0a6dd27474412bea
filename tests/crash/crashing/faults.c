/* A disk that fails when it is told to, for LD_PRELOAD: calls on regular files under $CRASHING_FAULTS_UNDER
 * fail as the file $CRASHING_FAULTS says. That file is mapped, so that a test changes it while we run.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITES = 1, SYNCS = 2, TRUNCATES = 4 };

struct control {
    volatile uint32_t permille; /* of the calls fail */
    volatile uint32_t error;    /* with this errno */
    volatile uint32_t calls;    /* of these kinds */
    volatile uint32_t failed;   /* so many have */
    char only[64];              /* files whose path holds this text; empty: all */
};

static struct control *control;
static const char *under;
static __thread uint64_t state;

__attribute__((constructor)) static void begin(void) {
    const char *path = getenv("CRASHING_FAULTS");
    under = getenv("CRASHING_FAULTS_UNDER");
    int fd = path && under ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *map = mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (map != MAP_FAILED)
        control = map;
}

static uint32_t chance(void) {
    if (!state)
        state = (uint64_t)(uintptr_t)&state ^ ((uint64_t)getpid() << 32) ^ 0x9E3779B97F4A7C15u;
    state ^= state << 13;
    state ^= state >> 7;
    state ^= state << 17;
    return (uint32_t)(state >> 33);
}

static int fails(int fd, uint32_t kind) {
    if (!control || !(control->calls & kind) || chance() % 1000 >= control->permille)
        return 0;
    struct stat status;
    char link[64], path[4096];
    if (fstat(fd, &status) || !S_ISREG(status.st_mode))
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    if (strncmp(path, under, strlen(under)) || (control->only[0] && !strstr(path, control->only)))
        return 0;
    __atomic_fetch_add(&control->failed, 1, __ATOMIC_RELAXED);
    errno = (int)control->error;
    return 1;
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

/* A write that fails has half happened, every other time: a torn one. */
#define HALF(call)                 \
    if (chance() & 1) {            \
        int kept = errno;          \
        (void)!(call);             \
        errno = kept;              \
    }                              \
    return -1;

ssize_t write(int fd, const void *data, size_t size) {
    if (fails(fd, WRITES)) {
        HALF(REAL(write)(fd, data, size / 2))
    }
    return REAL(write)(fd, data, size);
}

ssize_t pwrite(int fd, const void *data, size_t size, off_t at) {
    if (fails(fd, WRITES)) {
        HALF(REAL(pwrite)(fd, data, size / 2, at))
    }
    return REAL(pwrite)(fd, data, size, at);
}

ssize_t pwrite64(int fd, const void *data, size_t size, off64_t at) {
    if (fails(fd, WRITES)) {
        HALF(REAL(pwrite64)(fd, data, size / 2, at))
    }
    return REAL(pwrite64)(fd, data, size, at);
}

ssize_t writev(int fd, const struct iovec *parts, int count) {
    if (fails(fd, WRITES)) {
        HALF(REAL(write)(fd, parts[0].iov_base, parts[0].iov_len / 2))
    }
    return REAL(writev)(fd, parts, count);
}

ssize_t pwritev(int fd, const struct iovec *parts, int count, off_t at) {
    if (fails(fd, WRITES)) {
        HALF(REAL(pwrite)(fd, parts[0].iov_base, parts[0].iov_len / 2, at))
    }
    return REAL(pwritev)(fd, parts, count, at);
}

int fsync(int fd) { return fails(fd, SYNCS) ? -1 : REAL(fsync)(fd); }

int fdatasync(int fd) { return fails(fd, SYNCS) ? -1 : REAL(fdatasync)(fd); }

int ftruncate(int fd, off_t size) { return fails(fd, TRUNCATES) ? -1 : REAL(ftruncate)(fd, size); }

int ftruncate64(int fd, off64_t size) { return fails(fd, TRUNCATES) ? -1 : REAL(ftruncate64)(fd, size); }
