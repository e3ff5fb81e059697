/*
 * floor MOUNT_POINT, in a user and mount namespace of its own: what the kernel takes for requests to a FUSE server that
 * does nothing at all. Prints {"request": .., "small_writes": .., "sequential": ..}: seconds for 100,000 questions about
 * an attribute, for 256 MiB in writes of 4 KiB with the question that overlayfs asks before each, and for 1 GiB in
 * writes of 1 MiB. Layouts: linux/fuse.h.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <sys/xattr.h>
#include <time.h>
#include <unistd.h>

enum { MIB = 1 << 20, DATA = 256 * 1024, FILE_NODE = 2 };

union body {
	struct fuse_init_out init;
	struct fuse_entry_out entry;
	struct fuse_attr_out attr;
	struct fuse_write_out write;
};
struct reply {
	struct fuse_out_header head;
	union body body;
};

static struct fuse_attr describe(uint64_t node)
{
	struct fuse_attr attr = {.ino = node, .nlink = 1, .mode = node == FILE_NODE ? S_IFREG | 0644 : S_IFDIR | 0755};
	return attr;
}

/* Gives the length of what follows the header, or a negative errno, or 1 where nothing is answered. */
static long answer(struct fuse_in_header *head, union body *body)
{
	void *request = head + 1;
	struct fuse_init_in *init = request;
	switch (head->opcode) {
	case FUSE_INIT:
		body->init = (struct fuse_init_out){
			.major = 7, .minor = 33, .max_readahead = init->max_readahead, .max_background = UINT16_MAX,
			.congestion_threshold = UINT16_MAX, .max_write = DATA, .time_gran = 1, .max_pages = DATA / 4096,
			.flags = init->flags & (FUSE_ASYNC_READ | FUSE_BIG_WRITES | FUSE_MAX_PAGES | FUSE_PARALLEL_DIROPS |
						FUSE_NO_OPEN_SUPPORT | FUSE_NO_OPENDIR_SUPPORT | FUSE_HANDLE_KILLPRIV_V2),
		};
		return sizeof body->init;
	case FUSE_LOOKUP:
	case FUSE_MKNOD:
		body->entry = (struct fuse_entry_out){.nodeid = FILE_NODE, .entry_valid = 1 << 30, .attr_valid = 1 << 30};
		body->entry.attr = describe(FILE_NODE);
		return sizeof body->entry;
	case FUSE_GETATTR:
	case FUSE_SETATTR:
		body->attr = (struct fuse_attr_out){.attr_valid = 1 << 30, .attr = describe(head->nodeid)};
		return sizeof body->attr;
	case FUSE_GETXATTR:
		return -ENODATA;
	case FUSE_WRITE:
		body->write = (struct fuse_write_out){.size = ((struct fuse_write_in *)request)->size};
		return sizeof body->write;
	case FUSE_FORGET:
	case FUSE_BATCH_FORGET:
	case FUSE_INTERRUPT:
		return 1;
	default:
		return -ENOSYS;
	}
}

static void serve(int device)
{
	char *buffer = malloc(DATA + 4096);
	while (read(device, buffer, DATA + 4096) > 0 || errno == EINTR || errno == EAGAIN || errno == ENOENT) {
		struct fuse_in_header *head = (void *)buffer;
		struct reply reply = {.head = {.unique = head->unique}};
		long result = answer(head, &reply.body);
		if (result == 1)
			continue;
		reply.head.error = result < 0 ? result : 0;
		reply.head.len = sizeof reply.head + (result < 0 ? 0 : result);
		if (write(device, &reply, reply.head.len) < 0 && errno == ENODEV)
			break;
	}
	_exit(0);
}

static double seconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec * 1e-9;
}

int main(int count, char **arguments)
{
	static char block[MIB], value[8];
	char text[200];
	int device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	snprintf(text, sizeof text, "fd=%d,rootmode=40000,user_id=0,group_id=0,default_permissions", device);
	if (count != 2 || mount("floor", arguments[1], "fuse", MS_NOSUID | MS_NODEV, text) != 0) {
		perror("floor: mount");
		return 1;
	}
	if (fork() == 0)
		serve(device);
	/* The mount ends with the server, or with us. */
	snprintf(text, sizeof text, "%s/file", arguments[1]);
	int file = open(text, O_WRONLY | O_CREAT, 0644);
	double begin = seconds();
	for (int number = 0; number < 100000; number++)
		fgetxattr(file, "user.none", value, sizeof value);
	double questions = seconds();
	for (long number = 0; number < 256L * MIB / 4096; number++) {
		fgetxattr(file, "user.none", value, sizeof value);
		if (pwrite(file, block, 4096, number * 4096) != 4096)
			return 1;
	}
	double small = seconds();
	for (long number = 0; number < 1024; number++)
		if (pwrite(file, block, MIB, number * MIB) != MIB)
			return 1;
	printf("{\"request\": %f, \"small_writes\": %f, \"sequential\": %f}\n", (questions - begin) / 100000,
	       small - questions, seconds() - small);
	fflush(stdout);
	close(device);
	close(file);
	umount2(arguments[1], MNT_DETACH);
	return 0;
}
