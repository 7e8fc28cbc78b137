/* Stands between a process and its filesystem: counts, records, tears or refuses the calls that change a folder.
 *
 * Preloaded (LD_PRELOAD) and idle until fault_arm; only paths under the armed folder count. The process may be killed
 * at the k-th such call, before it happens or with half of its bytes written; the k-th call may fail instead; the
 * folder may have room for so many bytes only; and every call may be written to a journal, from which what a power cut
 * leaves can be rebuilt. Syncs of an armed folder are noted and left out: the journal says what they made durable.
 *
 * A journal record: call (1 byte), length of path, offset, length of data (8 bytes each), path, data; native order.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static char folder[PATH_MAX];
static size_t folder_length = 0;
static int journal = -1;
static long calls = 0, fatal = 0, failing = 0, room = -1;
static int torn = 0;

/* journal_fd: -1 for none. die_at, fail_at: 0 for never. bytes: what the folder still has room for, -1 for no end. */
void fault_arm(const char *path, int journal_fd, long die_at, int half, long fail_at, long bytes) {
    snprintf(folder, sizeof folder, "%s", path);
    folder_length = strlen(folder);
    journal = journal_fd;
    calls = 0;
    fatal = die_at;
    torn = half;
    failing = fail_at;
    room = bytes;
}

long fault_calls(void) { return calls; }

static void note_all(const void *data, size_t length) {
    const char *from = data;
    while (length > 0) {
        ssize_t done = syscall(SYS_write, journal, from, length);
        if (done <= 0) _exit(98);
        from += done;
        length -= (size_t)done;
    }
}

static void note(char call, const char *path, uint64_t offset, const void *data, uint64_t length) {
    if (journal < 0) return;
    uint64_t path_length = strlen(path);
    note_all(&call, 1);
    note_all(&path_length, 8);
    note_all(&offset, 8);
    note_all(&length, 8);
    note_all(path, path_length);
    if (length) note_all(data, length);
}

void fault_note(const char *text) { note('n', "", 0, text, strlen(text)); }

static int inside(const char *path) {
    if (!folder_length || strncmp(path, folder, folder_length)) return 0;
    size_t length = strlen(path);
    if (length >= 4 && !strcmp(path + length - 4, "-shm")) return 0;
    return path[folder_length] == '/' || path[folder_length] == '\0';
}

static int path_at(int at, const char *path, char *whole) {
    if (!folder_length || !path) return 0;
    if (path[0] == '/') {
        snprintf(whole, PATH_MAX, "%s", path);
    } else {
        char link[64], base[PATH_MAX];
        if (at == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", at);
            ssize_t length = readlink(link, base, sizeof base - 1);
            if (length < 0) return 0;
            base[length] = '\0';
        }
        if (snprintf(whole, PATH_MAX, "%s/%s", base, path) >= PATH_MAX) return 0;
    }
    return inside(whole);
}

static int path_of(int fd, char *whole) {
    char link[64];
    if (!folder_length) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    int saved = errno;
    ssize_t length = readlink(link, whole, PATH_MAX - 1);
    errno = saved;
    if (length < 0) return 0;
    whole[length] = '\0';
    return inside(whole);
}

static void die(void) {
    syscall(SYS_kill, getpid(), SIGKILL);
    for (;;) pause();
}

/* Counts a call that changes the folder. 1: it must fail. */
static int counted(void) {
    calls++;
    if (calls == fatal && !torn) die();
    if (calls != failing) return 0;
    errno = EIO;
    return 1;
}

/* Takes what a file's growth to `end` costs from the room there is. 1: there is too little, and it must fail. */
static int grown(int fd, off_t end) {
    struct stat now;
    if (room < 0 || fstat(fd, &now) || end <= now.st_size) return 0;
    if (end - now.st_size > room) {
        errno = ENOSPC;
        return 1;
    }
    room -= end - now.st_size;
    return 0;
}

/* Gives back the bytes that a file of this size gives up. */
static void freed(off_t bytes) {
    if (room >= 0) room += bytes;
}

static off_t size_at(int at, const char *name) {
    struct stat found;
    return fstatat(at, name, &found, AT_SYMLINK_NOFOLLOW) || !S_ISREG(found.st_mode) ? 0 : found.st_size;
}

/* How many bytes of a write are let through: half where this call is to be torn. */
static size_t allowed(size_t length) { return calls == fatal && torn ? length / 2 : length; }

static void died_torn(void) {
    if (calls == fatal && torn) die();
}

#define NEXT(type, name) ((type)dlsym(RTLD_NEXT, #name))

#define WRITES(name, call_parameters, call_arguments, position)                                  \
    ssize_t name call_parameters {                                                               \
        static ssize_t(*next) call_parameters;                                                   \
        if (!next) next = NEXT(ssize_t(*) call_parameters, name);                                \
        char path[PATH_MAX];                                                                     \
        if (!path_of(fd, path)) return next call_arguments;                                      \
        if (counted()) return -1;                                                                \
        int flags = fcntl(fd, F_GETFL);                                                          \
        off_t at = (flags & O_APPEND) ? lseek(fd, 0, SEEK_END) : (position);                     \
        length = allowed(length);                                                                \
        if (grown(fd, at + (off_t)length)) return -1;                                            \
        ssize_t done = next call_arguments;                                                      \
        if (done > 0) note('w', path, (uint64_t)at, data, (uint64_t)done);                       \
        died_torn();                                                                             \
        return done;                                                                             \
    }

WRITES(write, (int fd, const void *data, size_t length), (fd, data, length), lseek(fd, 0, SEEK_CUR))
WRITES(pwrite, (int fd, const void *data, size_t length, off_t offset), (fd, data, length, offset), offset)
WRITES(pwrite64, (int fd, const void *data, size_t length, off64_t offset), (fd, data, length, offset), offset)

#define TRUNCATES(name, offset_type)                                                             \
    int name(int fd, offset_type length) {                                                       \
        static int (*next)(int, offset_type);                                                    \
        if (!next) next = NEXT(int (*)(int, offset_type), name);                                 \
        char path[PATH_MAX];                                                                     \
        if (!path_of(fd, path)) return next(fd, length);                                         \
        if (counted()) return -1;                                                                \
        died_torn();                                                                             \
        struct stat before;                                                                      \
        if (grown(fd, (off_t)length)) return -1;                                                 \
        if (!fstat(fd, &before) && before.st_size > (off_t)length) freed(before.st_size - length); \
        int done = next(fd, length);                                                             \
        if (!done) note('t', path, (uint64_t)length, NULL, 0);                                   \
        return done;                                                                             \
    }

TRUNCATES(ftruncate, off_t)
TRUNCATES(ftruncate64, off64_t)

#define ALLOCATES(name, offset_type)                                                             \
    int name(int fd, offset_type offset, offset_type length) {                                   \
        static int (*next)(int, offset_type, offset_type);                                       \
        if (!next) next = NEXT(int (*)(int, offset_type, offset_type), name);                    \
        char path[PATH_MAX];                                                                     \
        if (!path_of(fd, path)) return next(fd, offset, length);                                 \
        if (counted()) return EIO;                                                               \
        died_torn();                                                                             \
        if (grown(fd, (off_t)(offset + length))) return ENOSPC;                                                                               \
        int done = next(fd, offset, length);                                                     \
        if (!done) note('a', path, (uint64_t)(offset + length), NULL, 0);                        \
        return done;                                                                             \
    }

ALLOCATES(posix_fallocate, off_t)
ALLOCATES(posix_fallocate64, off64_t)

#define SYNCS(name)                                                                              \
    int name(int fd) {                                                                           \
        static int (*next)(int);                                                                 \
        if (!next) next = NEXT(int (*)(int), name);                                              \
        char path[PATH_MAX];                                                                     \
        if (!path_of(fd, path)) return next(fd);                                                 \
        if (counted()) return -1;                                                                \
        died_torn();                                                                             \
        note('s', path, 0, NULL, 0);                                                             \
        return 0;                                                                                \
    }

SYNCS(fsync)
SYNCS(fdatasync)

static int renamed(int from_at, const char *from, int to_at, const char *to, int (*next)(const char *, const char *)) {
    char old[PATH_MAX], new[PATH_MAX];
    int counts = path_at(from_at, from, old) | path_at(to_at, to, new);
    if (counts && counted()) return -1;
    if (counts) died_torn();
    if (counts) freed(size_at(to_at, to));
    int done = next ? next(from, to) : (int)syscall(SYS_renameat2, from_at, from, to_at, to, 0);
    if (counts && !done) note('r', old, 0, new, strlen(new));
    return done;
}

int rename(const char *from, const char *to) {
    static int (*next)(const char *, const char *);
    if (!next) next = NEXT(int (*)(const char *, const char *), rename);
    return renamed(AT_FDCWD, from, AT_FDCWD, to, next);
}

int renameat(int from_at, const char *from, int to_at, const char *to) {
    return renamed(from_at, from, to_at, to, NULL);
}

#define NAMES(name, call, parameters, arguments, at, path_name)                                  \
    int name parameters {                                                                        \
        static int(*next) parameters;                                                            \
        if (!next) next = NEXT(int(*) parameters, name);                                         \
        char path[PATH_MAX];                                                                     \
        if (!path_at(at, path_name, path)) return next arguments;                                \
        if (counted()) return -1;                                                                \
        died_torn();                                                                             \
        if ((call) == 'u') freed(size_at(at, path_name));                                        \
        int done = next arguments;                                                               \
        if (!done) note(call, path, 0, NULL, 0);                                                 \
        return done;                                                                             \
    }

NAMES(unlink, 'u', (const char *name), (name), AT_FDCWD, name)
NAMES(unlinkat, 'u', (int at, const char *name, int flags), (at, name, flags), at, name)
NAMES(rmdir, 'u', (const char *name), (name), AT_FDCWD, name)
NAMES(mkdir, 'd', (const char *name, mode_t mode), (name, mode), AT_FDCWD, name)

/* Opening counts where it makes or empties a file. */
static int opened(int at, const char *name, int flags, mode_t mode) {
    char path[PATH_MAX];
    int counts = (flags & (O_CREAT | O_TRUNC)) && path_at(at, name, path);
    struct stat found;
    int exists = counts && !fstatat(at, name, &found, 0);
    counts = counts && (!exists || ((flags & O_TRUNC) && found.st_size));
    if (counts && counted()) return -1;
    if (counts) died_torn();
    if (counts && exists) freed(found.st_size);
    int fd = (int)syscall(SYS_openat, at, name, flags, mode);
    if (counts && fd >= 0) note(exists ? 't' : 'c', path, 0, NULL, 0);
    return fd;
}

#define OPENS(name, first_parameter, at, extra)                                                  \
    int name(first_parameter const char *path, int flags, ...) {                                 \
        mode_t mode = 0;                                                                         \
        if ((flags & O_CREAT) || (flags & O_TMPFILE) == O_TMPFILE) {                                                     \
            va_list rest;                                                                        \
            va_start(rest, flags);                                                               \
            mode = va_arg(rest, mode_t);                                                         \
            va_end(rest);                                                                        \
        }                                                                                        \
        return opened(at, path, flags | (extra), mode);                                          \
    }
#define AT int directory,

OPENS(open, , AT_FDCWD, 0)
OPENS(open64, , AT_FDCWD, 0)
OPENS(openat, AT, directory, 0)
OPENS(openat64, AT, directory, 0)
