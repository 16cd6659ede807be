/* A disk that fails: loaded with LD_PRELOAD, it stands between a process and the files below one folder.
 *
 * Every call that changes such a file is counted: open for writing, write, pwrite, fsync, fdatasync, ftruncate, rename
 * and unlink. The n-th fails, once or from then on, with the error that was asked for; `partial` lets half of a write
 * reach the file before, as a disk does that becomes full. With a trace descriptor each call that succeeded is recorded
 * there, so that a loss of power can be played afterwards. Nothing is really synced.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static char folder[PATH_MAX];
static long fail_at, calls;
static int lasting, failure, partial, trace = -1;

#define REAL(name) ((__typeof__(&name))real(#name))

static void *real(const char *name) {
    void *found = dlsym(RTLD_NEXT, name);
    if (!found) abort();
    return found;
}

/* Takes effect at once for all threads; `nth` 0 never fails. */
void faulty_disk_arm(const char *path, long nth, int from_then_on, int error, int half) {
    pthread_mutex_lock(&lock);
    snprintf(folder, sizeof folder, "%s/", path);
    fail_at = nth, lasting = from_then_on, failure = error, partial = half, calls = 0;
    pthread_mutex_unlock(&lock);
}

void faulty_disk_heal(void) {
    pthread_mutex_lock(&lock);
    fail_at = 0;
    pthread_mutex_unlock(&lock);
}

void faulty_disk_trace(int descriptor) { trace = descriptor; }

long faulty_disk_calls(void) { return calls; }

static int concerns(const char *path) { return *folder && !strncmp(path, folder, strlen(folder)); }

static int concerns_folder(const char *path) { return *folder && !strncmp(path, folder, strlen(folder) - 1); }

static int path_of(int descriptor, char *path) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length < 0) return 0;
    path[length] = 0;
    return 1;
}

/* Counts a call; whether it has to fail. The lock is held until `settle`, so that the trace has the true order. */
static int fails(void) {
    pthread_mutex_lock(&lock);
    calls++;
    return fail_at && (lasting ? calls >= fail_at : calls == fail_at);
}

static void record(char kind, const char *path, uint64_t offset, const void *data, uint32_t size) {
    if (trace < 0) return;
    uint16_t length = strlen(path);
    char head[15];
    memcpy(head, &kind, 1), memcpy(head + 1, &length, 2), memcpy(head + 3, &offset, 8), memcpy(head + 11, &size, 4);
    __typeof__(&write) put = REAL(write);
    if (put(trace, head, 15) != 15 || put(trace, path, length) != length || put(trace, data, size) != size) abort();
}

static void settle(void) { pthread_mutex_unlock(&lock); }

static ssize_t put(int descriptor, const char *path, const void *data, size_t size, off_t offset) {
    int bad = fails();
    ssize_t done = -1;
    if (bad && partial && size > 1) REAL(pwrite)(descriptor, data, size / 2, offset);
    if (bad)
        errno = failure;
    else
        done = REAL(pwrite)(descriptor, data, size, offset);
    if (done > 0) record('W', path, offset, data, done);
    int saved = errno;
    settle();
    errno = saved;
    return done;
}

ssize_t pwrite64(int descriptor, const void *data, size_t size, off64_t offset) {
    char path[PATH_MAX];
    if (!path_of(descriptor, path) || !concerns(path)) return REAL(pwrite64)(descriptor, data, size, offset);
    return put(descriptor, path, data, size, offset);
}

ssize_t pwrite(int descriptor, const void *data, size_t size, off_t offset) {
    char path[PATH_MAX];
    if (!path_of(descriptor, path) || !concerns(path)) return REAL(pwrite)(descriptor, data, size, offset);
    return put(descriptor, path, data, size, offset);
}

ssize_t write(int descriptor, const void *data, size_t size) {
    char path[PATH_MAX];
    if (!path_of(descriptor, path) || !concerns(path)) return REAL(write)(descriptor, data, size);
    off_t offset = lseek(descriptor, 0, SEEK_CUR);
    ssize_t done = put(descriptor, path, data, size, offset);
    if (done > 0) lseek(descriptor, offset + done, SEEK_SET);
    return done;
}

static int change(char kind, const char *path, uint64_t offset, const char *other, int (*act)(void *), void *with) {
    int done = -1;
    if (fails())
        errno = failure;
    else
        done = act(with);
    if (done >= 0) record(kind, path, offset, other, strlen(other));
    int saved = errno;
    settle();
    errno = saved;
    return done;
}

static int synced(void *unused) { return 0; }

static int sync_descriptor(int descriptor, int (*otherwise)(int)) {
    char path[PATH_MAX];
    if (!path_of(descriptor, path) || !concerns_folder(path)) return otherwise(descriptor);
    return change('S', path, 0, "", synced, NULL);
}

int fsync(int descriptor) { return sync_descriptor(descriptor, REAL(fsync)); }

int fdatasync(int descriptor) { return sync_descriptor(descriptor, REAL(fdatasync)); }

struct cut {
    int descriptor;
    off64_t size;
};

static int cut(void *with) {
    struct cut *one = with;
    return REAL(ftruncate64)(one->descriptor, one->size);
}

int ftruncate64(int descriptor, off64_t size) {
    char path[PATH_MAX];
    struct cut one = {descriptor, size};
    if (!path_of(descriptor, path) || !concerns(path)) return cut(&one);
    return change('T', path, size, "", cut, &one);
}

int ftruncate(int descriptor, off_t size) { return ftruncate64(descriptor, size); }

static int take_off(void *with) { return REAL(unlink)(with); }

int unlink(const char *path) {
    if (!concerns(path)) return REAL(unlink)(path);
    return change('U', path, 0, "", take_off, (void *)path);
}

static int move(void *with) {
    const char **names = with;
    return REAL(rename)(names[0], names[1]);
}

int rename(const char *from, const char *to) {
    const char *names[] = {from, to};
    if (!concerns(from)) return REAL(rename)(from, to);
    return change('R', from, 0, to, move, names);
}

struct opening {
    const char *path;
    int flags;
    mode_t mode;
};

static int open_it(void *with) {
    struct opening *one = with;
    return REAL(open64)(one->path, one->flags, one->mode);
}

static int open_any(const char *path, int flags, mode_t mode) {
    struct opening one = {path, flags, mode};
    if (!concerns(path) || !(flags & (O_WRONLY | O_RDWR | O_CREAT))) return open_it(&one);
    return change('C', path, 0, "", open_it, &one);
}

int open64(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;
    va_end(more);
    return open_any(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list more;
    va_start(more, flags);
    mode_t mode = flags & O_CREAT ? va_arg(more, mode_t) : 0;
    va_end(more);
    return open_any(path, flags, mode);
}
