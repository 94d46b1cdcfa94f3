/*
 * What a hand-written model of the nouveau-v6 design costs: the yardstick for `python -m benchmarks.replay`.
 *
 * Usage: baseline FILE. FILE holds 64-bit words: the number of mappings, the number of events, then four words per
 * mapping (first address, bytes, PROT_* bits, 0) and four per event (operation, address, bytes, argument), as
 * faultpath.trace.ops has them. Everything is read before the clock starts. Prints `ns` and the counters.
 * With -DPLAIN_LOCKS a lock is a word that is tested and set without atomic instructions.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>

typedef uint64_t u64;

enum { OP_ACCESS = 2, OP_INVALIDATE = 14 };
enum { PAGE_SHIFT = 12, LEAF_SHIFT = 9, LEAF_PAGES = 1 << LEAF_SHIFT };
enum { VALID = 1, WRITE = 2, FRAME_SHIFT = 2 };
enum { PROT_R = 1, PROT_W = 2 };
enum { EAGAIN_ = 11, EBUSY_ = 16, EFAULT_ = 14, EPERM_ = 1, ENOENT_ = 2 };
#define TASK_SIZE (1ul << 47)
#define MAX_ADDR (~0ul)

static struct {
	u64 device_accesses, device_faults, device_faults_refused, fault_retries, invalidations, callbacks,
	    callbacks_empty, ptes_probed, ptes_zapped, intervals_created, intervals, intervals_peak, interval_bytes,
	    interval_bytes_peak, lookups, lookup_steps, walk_steps, vma_steps, device_commands, allocs, allocs_atomic;
	u64 lock_driver, lock_subscriptions, lock_mmap_read;
} counters;

#ifdef PLAIN_LOCKS
static void plain_lock(volatile int *word)
{
	if (*word)
		abort();
	*word = 1;
}

static void plain_unlock(volatile int *word)
{
	if (!*word)
		abort();
	*word = 0;
}

#define pthread_mutex_lock(lock) plain_lock((volatile int *)(lock))
#define pthread_mutex_unlock(lock) plain_unlock((volatile int *)(lock))
#define pthread_rwlock_rdlock(lock) plain_lock((volatile int *)(lock))
#define pthread_rwlock_unlock(lock) plain_unlock((volatile int *)(lock))
#endif

static void die(const char *what)
{
	perror(what);
	exit(1);
}

/* --- memory: one region, huge pages where the system has them, handed out from the front and zero */

static char *arena, *arena_end;

static void *map_zeroed(u64 bytes)
{
	void *p = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (p == MAP_FAILED)
		die("mmap");
	madvise(p, bytes, MADV_HUGEPAGE);
	return p;
}

static void *take(u64 bytes)
{
	char *p = arena;

	bytes = (bytes + 63) & ~63ul;
	if (p + bytes > arena_end)
		die("out of memory");
	arena += bytes;
	return p;
}

/* --- interval tree: red-black, each node knows the greatest end below it; a search touches one cache line a node */

struct node {
	uintptr_t parent_black;
	struct node *child[2];
	u64 start, last, subtree_last;
};

struct tree {
	struct node *root, *leftmost;
};

static struct node *parent(const struct node *n)
{
	return (struct node *)(n->parent_black & ~1ul);
}

static int is_red(const struct node *n)
{
	return n && !(n->parent_black & 1);
}

static void set_parent(struct node *n, struct node *p)
{
	n->parent_black = (uintptr_t)p | (n->parent_black & 1);
}

static void update(struct node *n)
{
	u64 greatest = n->last;

	for (int side = 0; side < 2; side++)
		if (n->child[side] && n->child[side]->subtree_last > greatest)
			greatest = n->child[side]->subtree_last;
	n->subtree_last = greatest;
}

/* The child of n opposite to side takes n's place; n becomes its child on that side. Colours stay with the nodes. */
static void rotate(struct tree *t, struct node *n, int side)
{
	struct node *up = n->child[!side], *p = parent(n), *inner = up->child[side];

	n->child[!side] = inner;
	if (inner)
		set_parent(inner, n);
	up->child[side] = n;
	set_parent(up, p);
	set_parent(n, up);
	if (!p)
		t->root = up;
	else
		p->child[p->child[1] == n] = up;
	up->subtree_last = n->subtree_last;
	update(n);
}

static void tree_insert(struct tree *t, struct node *n)
{
	struct node **link = &t->root, *p = NULL;
	int leftmost = 1;

	while (*link) {
		p = *link;
		if (p->subtree_last < n->last)
			p->subtree_last = n->last;
		if (n->start >= p->start)
			leftmost = 0;
		link = &p->child[n->start >= p->start];
	}
	n->child[0] = n->child[1] = NULL;
	n->subtree_last = n->last;
	n->parent_black = (uintptr_t)p;
	*link = n;
	if (leftmost)
		t->leftmost = n;
	while (is_red(p)) {
		struct node *grand = parent(p);
		int side = grand->child[1] == p;
		struct node *uncle = grand->child[!side];

		if (is_red(uncle)) {
			uncle->parent_black |= 1;
			p->parent_black |= 1;
			grand->parent_black &= ~1ul;
			n = grand;
			p = parent(n);
			continue;
		}
		if (p->child[!side] == n) {
			rotate(t, p, side);
			p = n;
		}
		p->parent_black |= 1;
		grand->parent_black &= ~1ul;
		rotate(t, grand, !side);
		break;
	}
	t->root->parent_black |= 1;
}

/* The leftmost node of n's subtree that meets [start, last]; the subtree reaches start. */
static struct node *subtree_search(struct node *n, u64 start, u64 last, u64 *steps)
{
	u64 read = 0;

	for (;;) {
		struct node *left = n->child[0];

		if (left) {
			read++;
			if (start <= left->subtree_last) {
				n = left;
				continue;
			}
		}
		if (n->start > last)
			n = NULL;
		else if (start > n->last) {
			n = n->child[1];
			if (n) {
				read++;
				if (start <= n->subtree_last)
					continue;
			}
			n = NULL;
		}
		break;
	}
	*steps += read;
	return n;
}

static struct node *tree_first(const struct tree *t, u64 start, u64 last, u64 *steps)
{
	struct node *n = t->root;

	if (!n)
		return NULL;
	++*steps;
	if (n->subtree_last < start)
		return NULL;
	if (t->leftmost != n)
		++*steps;
	if (t->leftmost->start > last)
		return NULL;
	return subtree_search(n, start, last, steps);
}

static struct node *tree_next(struct node *n, u64 start, u64 last, u64 *steps)
{
	struct node *right = n->child[1], *from;

	for (;;) {
		if (right) {
			++*steps;
			if (start <= right->subtree_last)
				return subtree_search(right, start, last, steps);
		}
		do {
			from = n;
			n = parent(n);
			if (!n)
				return NULL;
			++*steps;
			right = n->child[1];
		} while (from == right);
		if (last < n->start)
			return NULL;
		if (start <= n->last)
			return n;
	}
}

/* --- page tables: a directory of pointers to leaves of 512 entries, a byte each */

struct leaf {
	union {
		uint8_t pte[LEAF_PAGES];
		u64 word[LEAF_PAGES / 8];
	};
};

struct table {
	struct leaf **dir;
};

static void table_init(struct table *t)
{
	t->dir = map_zeroed((TASK_SIZE >> (PAGE_SHIFT + LEAF_SHIFT)) * sizeof(*t->dir));
}

static unsigned table_get(const struct table *t, u64 addr)
{
	const struct leaf *leaf;

	if (addr >= TASK_SIZE)
		return 0;
	leaf = t->dir[addr >> (PAGE_SHIFT + LEAF_SHIFT)];
	return leaf ? leaf->pte[addr >> PAGE_SHIFT & (LEAF_PAGES - 1)] : 0;
}

static void table_set(struct table *t, u64 addr, unsigned entry)
{
	struct leaf **leaf = &t->dir[addr >> (PAGE_SHIFT + LEAF_SHIFT)];

	if (!*leaf)
		*leaf = take(sizeof(**leaf));
	(*leaf)->pte[addr >> PAGE_SHIFT & (LEAF_PAGES - 1)] = entry;
}

/* Clears [start, end), eight entries at a time where it can; the number of valid ones met. */
static u64 table_clear(struct table *t, u64 start, u64 end)
{
	const u64 low = 0x0101010101010101ul;
	u64 page = start >> PAGE_SHIFT, stop = (end < TASK_SIZE ? end : TASK_SIZE) >> PAGE_SHIFT, met = 0;

	while (page < stop) {
		struct leaf *leaf = t->dir[page >> LEAF_SHIFT];
		u64 upto = (page | (LEAF_PAGES - 1)) + 1;

		if (upto > stop)
			upto = stop;
		if (!leaf) {
			page = upto;
			continue;
		}
		while (page < upto) {
			u64 slot = page & (LEAF_PAGES - 1);

			if (slot % 8 == 0 && page + 8 <= upto) {
				met += (leaf->word[slot / 8] & low) * low >> 56;
				leaf->word[slot / 8] = 0;
				page += 8;
			} else {
				met += leaf->pte[slot] & VALID;
				leaf->pte[slot] = 0;
				page++;
			}
		}
	}
	return met;
}

/* --- the mm and its notifier core */

struct vma {
	struct node node;
	u64 prot;
};

struct range {
	u64 start, end;
	unsigned event;
	int blockable;
};

struct notifier;

struct notifier_ops {
	int (*invalidate)(struct notifier *sub, const struct range *range, u64 cur_seq);
};

struct subscriptions {
	pthread_mutex_t lock; /* a spinlock in the kernel */
	u64 invalidate_seq, active_invalidate_ranges;
	struct tree itree;
	void *list, *deferred_list; /* stay empty here: no plain notifiers, no unmapping */
};

struct mm {
	struct subscriptions *subscriptions;
	pthread_rwlock_t mmap_lock;
	struct tree vmas;
	struct table pt;
	u64 count, next_frame;
};

struct notifier {
	struct node node;
	const struct notifier_ops *ops;
	u64 invalidate_seq;
	struct mm *mm;
	void *deferred[2];
	u64 updated_start, updated_last;
};

struct svmm {
	struct mm *mm;
	pthread_mutex_t mutex;
	struct table pt;
};

struct svmm_interval {
	struct notifier notifier;
	struct svmm *svmm;
};

enum { INTERVAL_BYTES = 112 }; /* what the counters take a struct svmm_interval for */

static void subs_lock(struct subscriptions *subs)
{
	pthread_mutex_lock(&subs->lock);
	counters.lock_subscriptions++;
}

static void subs_unlock(struct subscriptions *subs)
{
	pthread_mutex_unlock(&subs->lock);
}

static void svmm_lock(struct svmm *svmm)
{
	pthread_mutex_lock(&svmm->mutex);
	counters.lock_driver++;
}

static void svmm_unlock(struct svmm *svmm)
{
	pthread_mutex_unlock(&svmm->mutex);
}

static struct vma *find_vma(struct mm *mm, u64 addr)
{
	return (struct vma *)tree_first(&mm->vmas, addr, MAX_ADDR, &counters.vma_steps);
}

static unsigned new_frame(struct mm *mm)
{
	if (++mm->next_frame == 64)
		mm->next_frame = 1;
	return mm->next_frame << FRAME_SHIFT;
}

static void notifier_insert(struct notifier *sub, struct mm *mm, u64 start, u64 last, const struct notifier_ops *ops)
{
	struct subscriptions *subs = mm->subscriptions;

	sub->mm = mm;
	sub->ops = ops;
	sub->node.start = start;
	sub->node.last = last;
	mm->count++;
	counters.intervals_created++;
	if (++counters.intervals > counters.intervals_peak)
		counters.intervals_peak = counters.intervals;
	subs_lock(subs);
	if (subs->active_invalidate_ranges)
		abort(); /* from a callback that unmaps only; there is none */
	sub->invalidate_seq = subs->invalidate_seq - 1;
	tree_insert(&subs->itree, &sub->node);
	subs_unlock(subs);
}

static struct notifier *notifier_find(struct mm *mm, const struct notifier_ops *ops, u64 start, u64 last)
{
	struct subscriptions *subs = mm->subscriptions;
	struct notifier *sub;

	counters.lookups++;
	subs_lock(subs);
	sub = (struct notifier *)tree_first(&subs->itree, start, last, &counters.lookup_steps);
	while (sub && sub->ops != ops)
		sub = (struct notifier *)tree_next(&sub->node, start, last, &counters.lookup_steps);
	subs_unlock(subs);
	return sub;
}

static u64 read_begin(struct notifier *sub)
{
	struct subscriptions *subs = sub->mm->subscriptions;
	u64 seq;
	int invalidating;

	subs_lock(subs);
	seq = sub->invalidate_seq;
	invalidating = seq == subs->invalidate_seq;
	subs_unlock(subs);
	if (invalidating)
		abort(); /* would wait: nobody else runs */
	return seq;
}

static int read_retry(const struct notifier *sub, u64 seq)
{
	return *(volatile const u64 *)&sub->invalidate_seq != seq;
}

static void invalidate_end(struct mm *mm)
{
	struct subscriptions *subs = mm->subscriptions;

	subs_lock(subs);
	if (--subs->active_invalidate_ranges == 0 && subs->invalidate_seq & 1) {
		subs->invalidate_seq++;
		if (subs->deferred_list)
			abort();
	}
	subs_unlock(subs);
}

static int invalidate_start(struct mm *mm, const struct range *range)
{
	struct subscriptions *subs = mm->subscriptions;
	struct notifier *sub;
	u64 cur_seq;

	subs_lock(subs);
	subs->active_invalidate_ranges++;
	sub = (struct notifier *)tree_first(&subs->itree, range->start, range->end - 1, &counters.walk_steps);
	if (sub)
		subs->invalidate_seq |= 1;
	cur_seq = subs->invalidate_seq;
	subs_unlock(subs);
	while (sub) {
		u64 before = counters.ptes_zapped;
		int done;

		counters.callbacks++;
		done = sub->ops->invalidate(sub, range, cur_seq);
		if (counters.ptes_zapped == before)
			counters.callbacks_empty++;
		if (!done && !range->blockable) {
			invalidate_end(mm);
			return -EAGAIN_;
		}
		sub = (struct notifier *)tree_next(&sub->node, range->start, range->end - 1, &counters.walk_steps);
	}
	if (subs->list)
		abort();
	return 0;
}

static void invalidate(struct mm *mm, u64 start, u64 end, unsigned event)
{
	struct range range = { .start = start, .end = end, .event = event, .blockable = 1 };

	counters.invalidations++;
	if (!invalidate_start(mm, &range))
		invalidate_end(mm);
}

/* --- the driver */

static int svmm_invalidate(struct notifier *sub, const struct range *range, u64 cur_seq)
{
	struct svmm *svmm = ((struct svmm_interval *)sub)->svmm;
	u64 met;

	if (!range->blockable)
		return 0;
	svmm_lock(svmm);
	sub->invalidate_seq = cur_seq;
	counters.device_commands++;
	met = table_clear(&svmm->pt, range->start, range->end);
	counters.ptes_probed += met;
	counters.ptes_zapped += met;
	if (range->event == 0)
		abort(); /* MMU_NOTIFY_UNMAP: the workload has none */
	svmm_unlock(svmm);
	return 1;
}

static const struct notifier_ops svmm_ops = { .invalidate = svmm_invalidate };

static struct notifier *interval_new(struct svmm *svmm, u64 start, u64 last)
{
	struct svmm_interval *smi = take(sizeof(*smi));

	counters.allocs++;
	counters.allocs_atomic++;
	counters.interval_bytes += INTERVAL_BYTES;
	if (counters.interval_bytes > counters.interval_bytes_peak)
		counters.interval_bytes_peak = counters.interval_bytes;
	smi->svmm = svmm;
	notifier_insert(&smi->notifier, svmm->mm, start, last, &svmm_ops);
	return &smi->notifier;
}

static struct notifier *interval_find(struct svmm *svmm, u64 start)
{
	u64 end = start + (1 << PAGE_SHIFT);
	struct notifier *sub, *left, *right;
	struct vma *vma;

	svmm_lock(svmm);
	sub = notifier_find(svmm->mm, &svmm_ops, start, end - 1);
	if (!sub || start < sub->node.start) {
		sub = NULL;
		vma = find_vma(svmm->mm, start);
		if (vma && start >= vma->node.start) {
			right = notifier_find(svmm->mm, &svmm_ops, end, vma->node.last);
			left = notifier_find(svmm->mm, &svmm_ops, vma->node.start, start - 1);
			sub = interval_new(svmm, left ? left->node.last + 1 : vma->node.start,
					   right ? right->node.start - 1 : vma->node.last);
		}
	}
	svmm_unlock(svmm);
	return sub;
}

static int hmm_fault(struct mm *mm, struct notifier *sub, u64 seq, u64 addr, int write)
{
	struct vma *vma;
	unsigned pte;

	if (read_retry(sub, seq))
		return -EBUSY_;
	vma = find_vma(mm, addr);
	if (!vma || addr < vma->node.start || !(vma->prot & PROT_R))
		return -EFAULT_;
	pte = table_get(&mm->pt, addr);
	if (!(pte & VALID) || (write && !(pte & WRITE))) {
		if (write && !(vma->prot & PROT_W))
			return -EPERM_;
		pte = new_frame(mm) | VALID | (write ? WRITE : 0);
		table_set(&mm->pt, addr, pte);
	}
	return pte;
}

static int svmm_fault(struct svmm *svmm, u64 addr, int write)
{
	struct mm *mm = svmm->mm;

	for (int tries = 0;; tries++) {
		struct notifier *sub;
		u64 seq;
		int pte;

		if (tries)
			counters.fault_retries++;
		pthread_rwlock_rdlock(&mm->mmap_lock);
		counters.lock_mmap_read++;
		sub = interval_find(svmm, addr);
		if (!sub) {
			pthread_rwlock_unlock(&mm->mmap_lock);
			return -ENOENT_;
		}
		seq = read_begin(sub);
		pte = hmm_fault(mm, sub, seq, addr, write);
		pthread_rwlock_unlock(&mm->mmap_lock);
		if (pte == -EBUSY_)
			continue;
		if (pte < 0)
			return pte;
		svmm_lock(svmm);
		if (!read_retry(sub, seq)) {
			counters.device_commands++;
			table_set(&svmm->pt, addr, pte);
			svmm_unlock(svmm);
			return 0;
		}
		svmm_unlock(svmm);
	}
}

static void device_access(struct svmm *svmm, u64 addr, int write)
{
	unsigned pte = table_get(&svmm->pt, addr);

	counters.device_accesses++;
	if (pte & VALID && (pte & WRITE || !write))
		return;
	counters.device_faults++;
	if (svmm_fault(svmm, addr, write) < 0)
		counters.device_faults_refused++;
}

/* --- the run */

struct event {
	u64 op, addr, size, arg;
};

static void run(struct mm *mm, struct svmm *svmm, const struct event *e, const struct event *end)
{
	for (; e < end; e++) {
		if (e->op == OP_ACCESS)
			device_access(svmm, e->addr & -(1ul << PAGE_SHIFT), e->arg);
		else if (e->op == OP_INVALIDATE)
			invalidate(mm, e->addr, e->addr + e->size, e->arg);
		else
			abort();
	}
}

static struct event *read_events(FILE *in, u64 n)
{
	struct event *events = malloc(n * sizeof(*events));

	if (!events || fread(events, sizeof(*events), n, in) != n)
		die("reading events");
	return events;
}

int main(int argc, char **argv)
{
	FILE *in = argc == 2 ? fopen(argv[1], "rb") : NULL;
	const u64 arena_bytes = 1ul << 32;
	struct subscriptions *subs;
	struct event *vmas, *events;
	struct timespec t0, t1;
	struct svmm *svmm;
	struct mm *mm;
	u64 n[2];

	if (!in || fread(n, sizeof(n), 1, in) != 1)
		die("usage: baseline FILE");
	vmas = read_events(in, n[0]);
	events = read_events(in, n[1]);

	arena = map_zeroed(arena_bytes);
	arena_end = arena + arena_bytes;
	mm = take(sizeof(*mm));
	subs = mm->subscriptions = take(sizeof(*subs));
	svmm = take(sizeof(*svmm));
	counters.allocs++;
	subs->invalidate_seq = 2;
	pthread_mutex_init(&subs->lock, NULL);
	pthread_mutex_init(&svmm->mutex, NULL);
	pthread_rwlock_init(&mm->mmap_lock, NULL);
	table_init(&mm->pt);
	table_init(&svmm->pt);
	svmm->mm = mm;
	for (u64 i = 0; i < n[0]; i++) {
		struct vma *vma = take(sizeof(*vma));

		vma->node.start = vmas[i].op;
		vma->node.last = vmas[i].op + vmas[i].addr - 1;
		vma->prot = vmas[i].size;
		tree_insert(&mm->vmas, &vma->node);
	}

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t0);
	run(mm, svmm, events, events + n[1]);
	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t1);

	printf("ns %ld\n", (t1.tv_sec - t0.tv_sec) * 1000000000 + t1.tv_nsec - t0.tv_nsec);
#define SHOW(name) printf(#name " %lu\n", counters.name)
	SHOW(device_accesses);
	SHOW(device_faults);
	SHOW(device_faults_refused);
	SHOW(fault_retries);
	SHOW(invalidations);
	SHOW(callbacks);
	SHOW(callbacks_empty);
	SHOW(ptes_probed);
	SHOW(ptes_zapped);
	SHOW(intervals_created);
	SHOW(intervals_peak);
	SHOW(interval_bytes_peak);
	SHOW(lookups);
	SHOW(lookup_steps);
	SHOW(walk_steps);
	SHOW(vma_steps);
	SHOW(device_commands);
	SHOW(allocs);
	SHOW(allocs_atomic);
	SHOW(lock_driver);
	SHOW(lock_subscriptions);
	SHOW(lock_mmap_read);
	return 0;
}
