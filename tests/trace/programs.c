/* Small programs to record, by name. Each does a known thing to its address space; 0 is success. */
#define _GNU_SOURCE
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define PAGE 4096L
#define AREA 0x200000100000UL /* far from everything, not at the start of a 2 MiB block, so never huge */
#define MOVED 0x200000180000UL
#define HUGE_AREA 0x200010000000UL

extern char **environ;

static char *map(unsigned long at, long bytes)
{
	char *p = mmap((void *)at, bytes, PROT_READ | PROT_WRITE,
		       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
	if (p == MAP_FAILED)
		exit(99);
	return p;
}

static void touch(char *p, long first, long end)
{
	for (long i = first; i < end; i++)
		*(volatile char *)(p + i * PAGE) = 1;
}

static int ended(pid_t pid)
{
	int status;
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return -1;
	return WEXITSTATUS(status);
}

/* Every call of which the kernel's answer is known; the test holds the list of ranges. */
static int sequence(void)
{
	int wrote[2], done[2];
	char *a = map(AREA, 64 * PAGE), byte = 0;
	touch(a, 0, 64);
	mprotect(a + 4 * PAGE, 4 * PAGE, PROT_READ);
	mprotect(a + 4 * PAGE, 4 * PAGE, PROT_READ | PROT_WRITE);
	madvise(a + 16 * PAGE, 8 * PAGE, MADV_DONTNEED);
	char *b = mremap(a + 32 * PAGE, 8 * PAGE, 8 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, (void *)MOVED);
	if (b == MAP_FAILED || pipe(wrote) || pipe(done))
		return 98;
	pid_t child = fork();
	if (!child) {
		touch(a, 0, 2);
		if (write(wrote[1], &byte, 1) != 1 || read(done[0], &byte, 1) != 1)
			_exit(97);
		_exit(0);
	}
	if (read(wrote[0], &byte, 1) != 1)
		return 96;
	touch(a, 2, 4);
	touch(b, 0, 1);
	if (write(done[1], &byte, 1) != 1)
		return 95;
	int status = ended(child);
	mmap(a + 40 * PAGE, 4 * PAGE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	munmap(a, 8 * PAGE);
	return status;
}

static int huge(void)
{
	char *a = map(HUGE_AREA, 4 << 20);
	madvise(a, 4 << 20, MADV_HUGEPAGE);
	touch(a, 0, 1024);
	mprotect(a + 16 * PAGE, 4 * PAGE, PROT_READ);
	return 0;
}

static int fork_touch(void *unused)
{
	(void)unused;
	pid_t child = fork();
	if (!child) {
		char *a = map(AREA, 4 * PAGE);
		touch(a, 0, 4);
		munmap(a, 4 * PAGE);
		_exit(3);
	}
	return ended(child) - 3;
}

static void *work(void *number)
{
	char *a = map(MOVED + (unsigned long)number * 16 * PAGE, 4 * PAGE);
	touch(a, 0, 4);
	munmap(a, 4 * PAGE);
	return (void *)(long)(number == (void *)1 ? fork_touch(NULL) : 0);
}

static int threads(void)
{
	pthread_t all[4];
	long bad = 0;
	for (long i = 0; i < 4; i++)
		pthread_create(&all[i], NULL, work, (void *)i);
	for (int i = 0; i < 4; i++) {
		void *result;
		pthread_join(all[i], &result);
		bad |= (long)result;
	}
	return bad != 0;
}

static void *become_shell(void *unused)
{
	(void)unused;
	execl("/bin/sh", "sh", "-c", "exit 4", NULL);
	return NULL;
}

static int exec_in_thread(void)
{
	pthread_t thread;
	pthread_create(&thread, NULL, become_shell, NULL);
	pause();
	return 1;
}

static int spawn(char *self)
{
	pid_t child;
	char *arguments[] = {self, "fork", NULL};
	if (posix_spawn(&child, self, NULL, NULL, arguments, environ))
		return 98;
	return ended(child);
}

/* Stops itself until its child sees that and continues it. */
static int stop(void)
{
	pid_t self = getpid(), child = fork();
	if (!child) {
		char path[64], text[512] = "";
		snprintf(path, sizeof(path), "/proc/%d/stat", self);
		for (int i = 0; i < 300; i++) {
			FILE *file = fopen(path, "r");
			size_t got = fread(text, 1, sizeof(text) - 1, file);
			fclose(file);
			text[got] = 0;
			char state = strrchr(text, ')')[2];
			if ((state == 'T' || state == 't') && i > 20)
				break;
			usleep(2000);
		}
		kill(self, SIGCONT);
		_exit(0);
	}
	raise(SIGSTOP);
	return ended(child);
}

/* Would be killed by a tap that runs its calls under the program's own filter. */
static int filtered(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog filter = {4, code};
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &filter))
		return 98;
	return fork_touch(NULL);
}

/* Maps and unmaps in a thread while the leader sleeps once; prints how long it slept, in ms. */
static void *churn(void *unused)
{
	(void)unused;
	for (;;) {
		char *a = map(AREA, 8 * PAGE);
		touch(a, 0, 8);
		munmap(a, 8 * PAGE);
		usleep(5000);
	}
	return NULL;
}

static int serve(char *milliseconds)
{
	long ms = atol(milliseconds);
	struct timespec begin, end, time = {ms / 1000, ms % 1000 * 1000000};
	pthread_t thread;
	pthread_create(&thread, NULL, churn, NULL);
	clock_gettime(CLOCK_MONOTONIC, &begin);
	int result = nanosleep(&time, NULL);
	clock_gettime(CLOCK_MONOTONIC, &end);
	printf("%d %ld\n", result, (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000);
	return 0;
}

int main(int count, char **arguments)
{
	const char *name = count > 1 ? arguments[1] : "";
	if (!strcmp(name, "sequence"))
		return sequence();
	if (!strcmp(name, "huge"))
		return huge();
	if (!strcmp(name, "fork"))
		return fork_touch(NULL);
	if (!strcmp(name, "threads"))
		return threads();
	if (!strcmp(name, "exec_in_thread"))
		return exec_in_thread();
	if (!strcmp(name, "spawn"))
		return spawn(arguments[0]);
	if (!strcmp(name, "stop"))
		return stop();
	if (!strcmp(name, "filtered"))
		return filtered();
	if (!strcmp(name, "serve") && count > 2)
		return serve(arguments[2]);
	return 100;
}
