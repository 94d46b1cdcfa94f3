/* Threads, fork, vfork, exec by a thread that does not lead, for the bundled strace: gcc -static -O1 -pthread tasks.c */
#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char self[] = "/proc/self/exe";

static void change(void)
{
	char *p = mmap(0, 4 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	p[0] = 1;
	mprotect(p, 4096, PROT_READ);
	mprotect(p, 4096, PROT_READ | PROT_WRITE);
	madvise(p, 2 * 4096, MADV_DONTNEED);
	p = mremap(p, 4 * 4096, 8 * 4096, MREMAP_MAYMOVE);
	munmap(p, 8 * 4096);
	munmap(p + 1, 4096); /* fails */
}

static void *work(void *unused)
{
	change();
	change();
	return unused;
}

static void *make(void *unused)
{
	char *args[] = {"tasks", "a) = 5, \"b\" <unfinished ...>\n", 0}, *none[] = {0};
	int pid = vfork();

	if (pid == 0) {
		execve("/none", args, none); /* fails */
		execve(self, args, none);
		_exit(1);
	}
	waitpid(pid, 0, 0);
	pid = fork();
	if (pid == 0) {
		change();
		_exit(0);
	}
	waitpid(pid, 0, 0);
	return unused;
}

static void *leave(void *unused)
{
	char *args[] = {"tasks", "end", 0}, *none[] = {0};

	execve(self, args, none);
	return unused;
}

int main(int argc, char **argv)
{
	pthread_t t[4];
	int i, pid;

	if (argc > 1) {
		change();
		return 0;
	}
	for (i = 0; i < 4; i++)
		pthread_create(&t[i], 0, i & 1 ? make : work, 0);
	for (i = 0; i < 4; i++)
		pthread_join(t[i], 0);
	pid = syscall(SYS_clone, CLONE_PARENT_SETTID | SIGCHLD, 0, 0, 0, 0);
	if (pid == 0)
		*(volatile char *)8 = 1;
	waitpid(pid, 0, 0);
	mmap(0, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_HUGETLB | 21 << 26, -1, 0);
	syscall(SYS_mbind, 0, 0, 0, 0, 0, 0);
	mmap((void *)(1UL << 40), 4096, PROT_READ, MAP_SHARED | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	mremap((void *)(1UL << 40), 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)(1UL << 41));
	pthread_create(&t[0], 0, leave, 0);
	pause();
}
