/* One of each memory operation, for the bundled recordings: gcc -static -O1 work.c -o work */
#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static char stack[16384];

static int child(void *p)
{
	((char *)p)[5 * 4096] = 2; /* in the parent's address space */
	return 0;
}

int main(void)
{
	long page = 4096, i;
	int kvm = open("/dev/kvm", O_RDWR);
	char *p, *q, *h;

	if (kvm >= 0)
		ioctl(kvm, 0xAE01, 0); /* KVM_CREATE_VM: its notifier reports this address space */
	p = mmap(0, 16 * page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	for (i = 0; i < 5; i++)
		p[i * page] = 1;
	mprotect(p, 2 * page, PROT_READ);
	mprotect(p, 2 * page, PROT_READ | PROT_WRITE);
	madvise(p, 4 * page, MADV_DONTNEED);
	madvise(p + 1, page, MADV_DONTNEED); /* fails */
	if (fork() == 0) {
		p[4 * page] = 3;
		_exit(0);
	}
	wait(0);
	clone(child, stack + sizeof(stack), CLONE_VM | CLONE_VFORK | SIGCHLD, p);
	wait(0);
	q = mremap(p, 16 * page, 32 * page, MREMAP_MAYMOVE);
	munmap(q + 8 * page, 8 * page);
	syscall(SYS_brk, (char *)syscall(SYS_brk, 0) + 3 * page);
	/* a huge page, then a change inside it: the kernel splits it first */
	h = mmap(0, 8 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	h = (char *)(((unsigned long)h + (2 << 20) - 1) & ~((2UL << 20) - 1));
	madvise(h, 4 << 20, MADV_HUGEPAGE);
	h[0] = h[2 << 20] = 1;
	mprotect(h + 3 * page, page, PROT_READ);
	munmap(h, 2 << 20);
	if (vfork() == 0) {
		char *none[] = {"work", "again", 0};
		if (kvm < 0)
			_exit(1);
		execve("/proc/self/exe-no", none, none); /* fails */
		_exit(0);
	}
	return 0;
}
