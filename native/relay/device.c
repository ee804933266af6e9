#define _GNU_SOURCE
#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <unistd.h>

#include "abi.h"
#include "message.h"

static const char DEVICE[] = "/dev/fuse";

int device_open(void)
{
    return open(DEVICE, O_RDWR | O_CLOEXEC);
}

/* --- mounting ------------------------------------------------------------------------------ */

static const struct {
    const char *name;
    unsigned long set;
    unsigned long clear;
} flag_options[] = {
    {"ro", MS_RDONLY, 0},
    {"rw", 0, MS_RDONLY},
    {"nosuid", MS_NOSUID, 0},
    {"suid", 0, MS_NOSUID},
    {"nodev", MS_NODEV, 0},
    {"dev", 0, MS_NODEV},
    {"noexec", MS_NOEXEC, 0},
    {"exec", 0, MS_NOEXEC},
    {"noatime", MS_NOATIME, 0},
    {"atime", 0, MS_NOATIME},
    {"nodiratime", MS_NODIRATIME, 0},
    {"relatime", MS_RELATIME, 0},
    {"strictatime", MS_STRICTATIME, 0},
    {"sync", MS_SYNCHRONOUS, 0},
    {"dirsync", MS_DIRSYNC, 0},
};

struct parsed_options {
    unsigned long flags;
    char *source; /* owned */
    char *rest;   /* owned; for the kernel */
};

static bool take_flag(struct parsed_options *parsed, const char *option)
{
    for (size_t i = 0; i < sizeof flag_options / sizeof *flag_options; i++) {
        if (strcmp(option, flag_options[i].name) == 0) {
            parsed->flags = (parsed->flags | flag_options[i].set) & ~flag_options[i].clear;
            return true;
        }
    }
    return false;
}

/* Copies the option that starts at *at without its backslashes, and goes behind its comma. */
static void next_option(const char **at, char *option)
{
    const char *from = *at;
    while (*from && *from != ',') {
        if (*from == '\\' && from[1])
            from++;
        *option++ = *from++;
    }
    *option = 0;
    *at = *from ? from + 1 : from;
}

static bool has_option(const char *rest, const char *name)
{
    for (const char *at = rest; (at = strstr(at, name)) != NULL; at++) {
        if (at == rest || at[-1] == ',')
            return true;
    }
    return false;
}

/* 0 or an errno. */
static int parse_options(int device, const char *options, struct parsed_options *parsed)
{
    static const char source_is[] = "fsname=";
    size_t room = 2 * strlen(options) + 160;
    char *option = malloc(room);
    int error = ENOMEM;

    *parsed = (struct parsed_options){.flags = MS_NOSUID | MS_NODEV};
    parsed->source = strdup("agentfs");
    parsed->rest = malloc(room);
    if (option == NULL || parsed->source == NULL || parsed->rest == NULL)
        goto done;
    int used = snprintf(parsed->rest, room, "fd=%d", device);
    for (const char *at = options; *at;) {
        const char *raw = at;
        next_option(&at, option);
        if (*option == 0 || take_flag(parsed, option))
            continue;
        if (strncmp(option, source_is, strlen(source_is)) == 0) {
            free(parsed->source);
            parsed->source = strdup(option + strlen(source_is));
            if (parsed->source == NULL)
                goto done;
            continue;
        }
        int length = (int)(at - raw) - (at > raw && at[-1] == ',');
        used += snprintf(parsed->rest + used, room - (size_t)used, ",%.*s", length, raw);
    }
    if (!has_option(parsed->rest, "rootmode="))
        used += snprintf(parsed->rest + used, room - (size_t)used, ",rootmode=40000");
    if (!has_option(parsed->rest, "user_id="))
        used += snprintf(parsed->rest + used, room - (size_t)used, ",user_id=%u", geteuid());
    if (!has_option(parsed->rest, "group_id="))
        used += snprintf(parsed->rest + used, room - (size_t)used, ",group_id=%u", getegid());
    error = (size_t)used < room ? 0 : EINVAL;

done:
    free(option);
    return error;
}

int device_mount(int device, const char *mountpoint, const char *options)
{
    struct parsed_options parsed;
    int error = parse_options(device, options, &parsed);
    if (error == 0 &&
        mount(parsed.source, mountpoint, "fuse.agentfs", parsed.flags, parsed.rest) != 0)
        error = errno;
    free(parsed.source);
    free(parsed.rest);
    return error;
}

int device_unmount(const char *mountpoint, bool lazy)
{
    return umount2(mountpoint, UMOUNT_NOFOLLOW | (lazy ? MNT_DETACH : 0)) == 0 ? 0 : errno;
}

int device_clone(int device)
{
    uint32_t source = (uint32_t)device;
    int clone = device_open();
    if (clone >= 0 && ioctl(clone, FUSE_DEV_IOC_CLONE, &source) != 0) {
        int error = errno;
        close(clone);
        errno = error;
        return -1;
    }
    return clone;
}

/* --- backing files ------------------------------------------------------------------------- */

int32_t device_backing_open(int device, int fd)
{
    struct abi_backing_map map = {.fd = fd};
    return ioctl(device, ABI_IOC_BACKING_OPEN, &map);
}

int device_backing_close(int device, int32_t backing_id)
{
    return ioctl(device, ABI_IOC_BACKING_CLOSE, &backing_id) == 0 ? 0 : errno;
}

/* --- the probe ----------------------------------------------------------------------------- */

enum { PROBE_LIMIT_MS = 2000 };

union probe_message {
    uint8_t bytes[FUSE_MIN_READ_BUFFER];
    struct {
        struct fuse_in_header header;
        struct fuse_init_in init;
    } request;
    struct {
        struct fuse_out_header header;
        struct abi_init_out init;
    } reply;
};

static const char *failed(char *reason, unsigned reason_bytes, const char *what)
{
    snprintf(reason, reason_bytes, "%s: %s", what, strerror(errno));
    return reason;
}

/* Answers the INIT request of the connection and registers a backing file. */
static const char *probe_connection(int device, char *reason, unsigned reason_bytes)
{
    union probe_message message;
    struct pollfd poller = {.fd = device, .events = POLLIN};
    struct init_wishes wishes = {.max_write = 4096, .page_bytes = 4096, .passthrough = true};
    struct fuse_init_in offered = {0};
    struct request request;
    bool asked;

    if (poll(&poller, 1, PROBE_LIMIT_MS) != 1)
        return "the kernel sends no FUSE requests";
    ssize_t size = read(device, message.bytes, sizeof message.bytes);
    if (size < 0)
        return failed(reason, reason_bytes, "read /dev/fuse");
    if (message_request(message.bytes, (size_t)size, &request) != REQUEST_OK ||
        request.header.opcode != FUSE_INIT)
        return "the kernel's first FUSE request is not INIT";
    memcpy(&offered, request.body,
           request.body_bytes < sizeof offered ? request.body_bytes : sizeof offered);
    wishes.offered = &offered;

    memset(&message, 0, sizeof message);
    message.reply.header = (struct fuse_out_header){.unique = request.header.unique};
    message.reply.init.major = FUSE_KERNEL_VERSION;
    message.reply.init.minor = FUSE_KERNEL_MINOR_VERSION;
    message.reply.init.max_write = wishes.max_write;
    size_t bytes = message_amend_init(message.bytes, sizeof message.reply, &wishes, &asked);
    if (!asked)
        return "the kernel has no FUSE passthrough (it came with Linux 6.9)";
    if (write(device, message.bytes, bytes) < 0)
        return failed(reason, reason_bytes, "answer INIT");

    int backing = memfd_create("agentfs-probe", MFD_CLOEXEC);
    if (backing < 0)
        return failed(reason, reason_bytes, "memfd_create");
    int32_t id = device_backing_open(device, backing);
    const char *why = id > 0 ? NULL : failed(reason, reason_bytes, "FUSE_DEV_IOC_BACKING_OPEN");
    close(backing);
    return why;
}

const char *device_probe(char *reason, unsigned reason_bytes)
{
    const char *why;
    char text[16];
    int context = -1;
    int root = -1;

    int device = device_open();
    if (device < 0)
        return failed(reason, reason_bytes, "open /dev/fuse");
    context = fsopen("fuse", FSOPEN_CLOEXEC);
    if (context < 0) {
        why = errno == EPERM ? "mounting needs CAP_SYS_ADMIN"
                             : failed(reason, reason_bytes, "fsopen");
        goto done;
    }
    snprintf(text, sizeof text, "%d", device);
    if (fsconfig(context, FSCONFIG_SET_STRING, "fd", text, 0) != 0 ||
        fsconfig(context, FSCONFIG_SET_STRING, "rootmode", "40000", 0) != 0 ||
        fsconfig(context, FSCONFIG_SET_STRING, "user_id", "0", 0) != 0 ||
        fsconfig(context, FSCONFIG_SET_STRING, "group_id", "0", 0) != 0 ||
        fsconfig(context, FSCONFIG_CMD_CREATE, NULL, NULL, 0) != 0 ||
        (root = fsmount(context, FSMOUNT_CLOEXEC, 0)) < 0) {
        why = failed(reason, reason_bytes, "mount FUSE");
        goto done;
    }
    why = probe_connection(device, reason, reason_bytes);

done:
    close(device); /* first: nothing can wait for an answer of ours any more */
    if (root >= 0)
        close(root);
    if (context >= 0)
        close(context);
    return why;
}
