/* A disk that fails: loaded before libc (LD_PRELOAD), it lets the n-th operation that changes files under a folder fail.

   The environment says which, and is read anew at each call, so that a process may set it for itself:
   FAIL_UNDER  the folder; without it nothing fails
   FAIL_AT     the number of the operation, from 1; 0 for none: they are only counted
   FAIL_WITH   the error: 28 is ENOSPC, 5 EIO, 122 EDQUOT
   FAIL_ON     1 if every later write and creation fails too, as on a disk that stays full
   FAIL_COUNT  a file outside the folder to which a byte is added for each operation
   FAIL_LOCKS  the error of every attempt to lock a file, as on file systems without locks: 37 is ENOLCK, 38 ENOSYS */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))

static long seen = 0;

static int under(const char *path) {
    const char *folder = getenv("FAIL_UNDER");
    return folder && *folder && strncmp(path, folder, strlen(folder)) == 0;
}

static int fails(int takes_space) {
    const char *at = getenv("FAIL_AT"), *with = getenv("FAIL_WITH"), *on = getenv("FAIL_ON"), *count = getenv("FAIL_COUNT");
    long number = ++seen, wanted = at ? atol(at) : 0;
    if (count) {
        int handle = REAL(open)(count, O_WRONLY | O_APPEND | O_CREAT, 0600);
        if (handle >= 0) {
            if (REAL(write)(handle, ".", 1) < 0) {}
            REAL(close)(handle);
        }
    }
    if (wanted && (number == wanted || (on && *on == '1' && takes_space && number > wanted))) {
        errno = with ? atoi(with) : ENOSPC;
        return 1;
    }
    return 0;
}

static int file_fails(int handle, int takes_space) {
    char link[64], path[PATH_MAX];
    struct stat about;
    int before = errno;
    if (fstat(handle, &about) != 0 || !S_ISREG(about.st_mode)) { errno = before; return 0; }
    snprintf(link, sizeof link, "/proc/self/fd/%d", handle);
    ssize_t length = readlink(link, path, sizeof path - 1);
    errno = before;
    if (length < 0) return 0;
    path[length] = 0;
    return under(path) && fails(takes_space);
}

static int path_fails(int folder, const char *path, int takes_space) {
    char whole[PATH_MAX];
    if (path[0] != '/') {
        char link[64], base[PATH_MAX];
        if (folder == AT_FDCWD) {
            if (!getcwd(base, sizeof base)) return 0;
        } else {
            snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
            ssize_t length = readlink(link, base, sizeof base - 1);
            if (length < 0) return 0;
            base[length] = 0;
        }
        if (snprintf(whole, sizeof whole, "%s/%s", base, path) >= (int)sizeof whole) return 0;
        path = whole;
    }
    return under(path) && fails(takes_space);
}

/* A disk that becomes full takes half of what it is given, and then nothing. */
static size_t part(size_t n) {
    const char *at = getenv("FAIL_AT"), *on = getenv("FAIL_ON");
    return at && on && *on == '1' && seen == atol(at) ? n / 2 : 0;
}

ssize_t write(int handle, const void *data, size_t n) {
    if (file_fails(handle, 1)) return part(n) ? REAL(write)(handle, data, part(n)) : -1;
    return REAL(write)(handle, data, n);
}
ssize_t pwrite(int handle, const void *data, size_t n, off_t at) {
    if (file_fails(handle, 1)) return part(n) ? REAL(pwrite)(handle, data, part(n), at) : -1;
    return REAL(pwrite)(handle, data, n, at);
}
ssize_t pwrite64(int handle, const void *data, size_t n, off64_t at) {
    if (file_fails(handle, 1)) return part(n) ? REAL(pwrite64)(handle, data, part(n), at) : -1;
    return REAL(pwrite64)(handle, data, n, at);
}
ssize_t writev(int handle, const struct iovec *data, int n) {
    return file_fails(handle, 1) ? -1 : REAL(writev)(handle, data, n);
}
int ftruncate(int handle, off_t n) { return file_fails(handle, 0) ? -1 : REAL(ftruncate)(handle, n); }
int ftruncate64(int handle, off64_t n) { return file_fails(handle, 0) ? -1 : REAL(ftruncate64)(handle, n); }
int posix_fallocate(int handle, off_t at, off_t n) {
    return file_fails(handle, 1) ? errno : REAL(posix_fallocate)(handle, at, n);
}
int posix_fallocate64(int handle, off64_t at, off64_t n) {
    return file_fails(handle, 1) ? errno : REAL(posix_fallocate64)(handle, at, n);
}
int fsync(int handle) { return file_fails(handle, 0) ? -1 : REAL(fsync)(handle); }
int fdatasync(int handle) { return file_fails(handle, 0) ? -1 : REAL(fdatasync)(handle); }
int rename(const char *from, const char *to) { return path_fails(AT_FDCWD, to, 0) ? -1 : REAL(rename)(from, to); }
int renameat(int a, const char *from, int b, const char *to) {
    return path_fails(b, to, 0) ? -1 : REAL(renameat)(a, from, b, to);
}

/* Some file systems, NFS among them, say only when a file is closed that it does not fit. */
int close(int handle) {
    int flags = fcntl(handle, F_GETFL);
    if (flags >= 0 && (flags & O_ACCMODE) != O_RDONLY && file_fails(handle, 0)) {
        int error = errno;
        REAL(close)(handle);
        errno = error;
        return -1;
    }
    return REAL(close)(handle);
}

#define OPENING(name)                                                        \
    int name(const char *path, int flags, ...) {                             \
        mode_t mode = 0;                                                     \
        if (flags & O_CREAT) {                                               \
            va_list rest;                                                    \
            va_start(rest, flags);                                           \
            mode = va_arg(rest, mode_t);                                     \
            va_end(rest);                                                    \
            if (path_fails(AT_FDCWD, path, 1)) return -1;                    \
        }                                                                    \
        return REAL(name)(path, flags, mode);                                \
    }
OPENING(open)
OPENING(open64)

#define OPENING_AT(name)                                                     \
    int name(int folder, const char *path, int flags, ...) {                 \
        mode_t mode = 0;                                                     \
        if (flags & O_CREAT) {                                               \
            va_list rest;                                                    \
            va_start(rest, flags);                                           \
            mode = va_arg(rest, mode_t);                                     \
            va_end(rest);                                                    \
            if (path_fails(folder, path, 1)) return -1;                      \
        }                                                                    \
        return REAL(name)(folder, path, flags, mode);                        \
    }
OPENING_AT(openat)
OPENING_AT(openat64)

int flock(int handle, int operation) {
    const char *locks = getenv("FAIL_LOCKS");
    if (locks) { errno = atoi(locks); return -1; }
    return REAL(flock)(handle, operation);
}
