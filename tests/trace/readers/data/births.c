/* Tasks of every kind, for the bundled recordings: cc -O1 -pthread births.c -o tasks */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <spawn.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static char *page;

static void touch(void)
{
	char *p = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	p[4096] = 1;
	munmap(p, 8192);
}

static void *thread(void *unused)
{
	touch();
	if (fork() == 0) { /* by a thread other than the first */
		page[0] = 2;
		_exit(0);
	}
	wait(0);
	return unused;
}

static void *leader(void *unused)
{
	char *again[] = {"tasks", "last", 0};

	touch();
	execve("/proc/self/exe", again, environ); /* takes the leader's place */
	return unused;
}

int main(int argc, char **argv)
{
	char *again[] = {"tasks", "spawned", 0};
	pthread_t one, two;
	pid_t child;
	int i, kvm;

	touch();
	if (argc > 1)
		return 0;
	kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	if (kvm >= 0)
		ioctl(kvm, 0xAE01, 0); /* KVM_CREATE_VM: its notifier reports this address space */
	page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	page[0] = 1;
	for (i = 0; i < 2; i++) {
		pthread_create(&one, 0, thread, 0);
		pthread_create(&two, 0, thread, 0);
		pthread_join(one, 0);
		pthread_join(two, 0);
	}
	if (vfork() == 0) {
		page[0] = 3;
		_exit(0);
	}
	wait(0);
	posix_spawn(&child, "/proc/self/exe", 0, 0, again, environ);
	wait(0);
	if (fork() == 0) {
		pthread_create(&one, 0, leader, 0);
		pause();
	}
	wait(0);
	return 0;
}
