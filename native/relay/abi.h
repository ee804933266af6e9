/*
 * What the relay needs of the kernel's FUSE ABI. <linux/fuse.h> of Linux 6.1 ends at 7.38; the
 * rest, up to 7.41, is here with the kernel's numbers. Structures that grew have names of our own.
 */
#ifndef AGENTFS_RELAY_ABI_H
#define AGENTFS_RELAY_ABI_H

#include <assert.h>
#include <linux/fuse.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/ioctl.h>

/* Bits of fuse_init_out.flags2 and open_flags. */
#define ABI_INIT2_PASSTHROUGH (UINT32_C(1) << 5) /* bit 37 of all flags */
#define ABI_FOPEN_PASSTHROUGH (UINT32_C(1) << 7)

/* The reply says how much in 64 bits; otherwise FUSE_COPY_FILE_RANGE. Linux 6.18 asks this first.
 */
#define ABI_COPY_FILE_RANGE_64 UINT32_C(53)

/* FUSE_UNIQUE: an INTERRUPT has the number of its request and this bit. */
#define ABI_UNIQUE_INTERRUPT UINT64_C(1)

/* FUSE_UNIQUE_RESEND: an earlier reader had the request and did not answer it; the reply must have
 * the bit as well. FUSE_NOTIFY_RESEND has the kernel send all of those again. */
#define ABI_UNIQUE_RESEND (UINT64_C(1) << 63)
#define ABI_NOTIFY_RESEND 7

struct abi_open_out {
    uint64_t fh;
    uint32_t open_flags;
    int32_t backing_id;
};

struct abi_init_out {
    uint32_t major;
    uint32_t minor;
    uint32_t max_readahead;
    uint32_t flags;
    uint16_t max_background;
    uint16_t congestion_threshold;
    uint32_t max_write;
    uint32_t time_gran;
    uint16_t max_pages;
    uint16_t map_alignment;
    uint32_t flags2;
    uint32_t max_stack_depth;
    uint32_t unused[6];
};

struct abi_backing_map {
    int32_t fd;
    uint32_t flags;
    uint64_t padding;
};

#define ABI_IOC_BACKING_OPEN  _IOW(FUSE_DEV_IOC_MAGIC, 1, struct abi_backing_map)
#define ABI_IOC_BACKING_CLOSE _IOW(FUSE_DEV_IOC_MAGIC, 2, uint32_t)

static_assert(sizeof(struct fuse_in_header) == 40, "kernel ABI");
static_assert(sizeof(struct fuse_out_header) == 16, "kernel ABI");
static_assert(sizeof(struct abi_open_out) == sizeof(struct fuse_open_out), "kernel ABI");
static_assert(sizeof(struct abi_init_out) == 64, "kernel ABI");
static_assert(offsetof(struct abi_init_out, max_stack_depth) == 36, "kernel ABI");
static_assert(sizeof(struct fuse_attr) == 88, "kernel ABI");
static_assert(sizeof(struct fuse_attr_out) == 104, "kernel ABI");
static_assert(sizeof(struct fuse_entry_out) == 128, "kernel ABI");
static_assert(FUSE_NAME_OFFSET_DIRENTPLUS == 152, "kernel ABI");

#endif
