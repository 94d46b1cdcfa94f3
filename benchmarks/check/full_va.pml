/* full-va for SPIN: mm/mmu_notifier.c and hmm_range_fault of Linux 6.1, one interval over everything (lib/test_hmm.c).
 *
 * One transition is one access to shared state; what a thread does with its own variables happens in the same
 * transition. A variable whose value no longer matters becomes 0 there and then, which halves the number of states. A
 * thread that is done stays at its end, for SPIN's rule that processes die youngest first would add states.
 *
 * -DS2, -DS3 or -DS4 picks the scenario, -DSKIP_RETRY, -DSET_SEQ_AFTER, -DSET_SEQ_BEFORE or -DSEQ_AFTER_HMM changes the
 * protocol. -DONE_COUNTER: frames are numbered over all pages, not per page. -DNO_RECHECK: a page brought in is read
 * again without comparing the sequence number again. -DHOLD_WRITE: munmap keeps mmap_lock for writing.
 */

#define VALID 1
#define WRITE 2
#define FRAME 4	/* a PTE counts frames from here up */
#ifndef PAGES
#define PAGES 4
#endif

bool lock;	/* subs->lock */
byte seq = 2;	/* subs->invalidate_seq */
byte running;	/* subs->active_invalidate_ranges */
bool in_tree = 1;	/* the interval is in subs->itree */
byte sub_seq = 1;	/* the interval's invalidate_seq */

byte readers;	/* mm->mmap_lock */
bool writer;
bool mutex;	/* dmirror->mutex */

bool vma[PAGES] = 1;
byte cpu[PAGES];	/* PTEs; a cleared one remembers its frame, so that the next differs */
byte dev[PAGES];
#ifdef ONE_COUNTER
byte frames;
#endif

byte closed[PAGES];	/* for the assertions: invalidations between range_start's return and range_end */
byte p;	/* loops within one transition; 0 outside them (SPIN's BFS does not take hidden variables) */

/* Locks */

inline acquire(held) { d_step { !held; held = 1 } }
inline release(held) { held = 0 }
inline down_read() { d_step { !writer; readers++ } }
inline up_read() { readers-- }
inline down_write() { d_step { !writer && !readers; writer = 1 } }
inline up_write() { writer = 0 }
inline downgrade_write() { d_step { writer = 0; readers++ } }

/* The device's fault on one page: dmirror_range_fault() */

inline read_begin()
{
	acquire(lock);
	begun = sub_seq;
	if
	:: begun == seq -> release(lock); begun != seq
	:: else -> release(lock)
	fi
}

#ifdef ONE_COUNTER
#define NEW_PTE(page)	frames++; cpu[page] = frames * FRAME + VALID + WRITE
#else
#define NEW_PTE(page)	cpu[page] = cpu[page] + FRAME + VALID + WRITE
#endif

inline fault(page)
{
	byte begun, pte;
retry:
#ifndef SEQ_AFTER_HMM
	read_begin();
#endif
	down_read();
recheck:
#ifndef SEQ_AFTER_HMM
	if
	:: begun != sub_seq -> d_step { up_read(); begun = 0 }; goto retry
	:: else
	fi;
#endif
	if
	:: vma[page]
	:: else -> d_step { up_read(); begun = 0 }; goto done
	fi;
again:
	if
	:: d_step { cpu[page] & VALID; pte = cpu[page] }
	:: else ->
		d_step {	/* under the PTE lock: somebody else may have been faster */
			if
			:: cpu[page] & VALID
			:: else -> NEW_PTE(page)
			fi
		};
#ifdef NO_RECHECK
		goto again
#else
		goto recheck
#endif
	fi;
	up_read();
#ifdef SEQ_AFTER_HMM
	read_begin();
#endif
	acquire(mutex);
#ifndef SKIP_RETRY
	if
	:: begun != sub_seq -> d_step { release(mutex); begun = 0; pte = 0 }; goto retry
	:: d_step { begun == sub_seq; begun = 0 }
	fi;
#endif
	d_step {
		assert(!closed[page] && cpu[page] == pte);
		dev[page] = pte;
		pte = 0
	};
	release(mutex);
done:
end:	false
}

/* An invalidation of the pages [lo, hi) */

inline start_returns(lo, hi)
{
	for (p : lo .. hi - 1) {
		assert(!dev[p]);
		closed[p]++
	};
	p = 0
}

inline range_start(lo, hi)
{
	acquire(lock);
	running++;
	in_tree;
	seq = seq | 1;
	release(lock);
	cur = seq;
	/* dmirror_interval_invalidate() */
#ifdef SET_SEQ_BEFORE
	d_step { sub_seq = cur; cur = 0 };
#endif
	acquire(mutex);
#if !defined(SET_SEQ_BEFORE) && !defined(SET_SEQ_AFTER)
	d_step { sub_seq = cur; cur = 0 };
#endif
	d_step {
		for (p : lo .. hi - 1) {
			dev[p] = 0
		};
		p = 0
	};
#ifdef SET_SEQ_AFTER
	release(mutex);
	d_step { sub_seq = cur; cur = 0; start_returns(lo, hi) }
#else
	d_step { release(mutex); start_returns(lo, hi) }
#endif
}

inline clear_cpu(lo, hi)
{
	d_step {
		for (p : lo .. hi - 1) {
			cpu[p] = cpu[p] & ~(VALID | WRITE)
		};
		p = 0
	}
}

inline range_end(lo, hi)
{
	d_step {
		!lock;
		lock = 1;
		for (p : lo .. hi - 1) {
			closed[p]--
		};
		p = 0
	};
	running--;
	if
	:: !running && (seq & 1) -> seq++
	:: else
	fi;
	release(lock)
}

inline dontneed(lo, hi)
{
	byte cur;
	down_read();
	range_start(lo, hi);
	clear_cpu(lo, hi);
	range_end(lo, hi);
	up_read();
end:	false
}

inline munmap(lo, hi)
{
	byte cur;
	down_write();
	d_step {
		for (p : lo .. hi - 1) {
			vma[p] = 0
		};
		p = 0
	};
#ifndef HOLD_WRITE
	downgrade_write();
#endif
	range_start(lo, hi);
	clear_cpu(lo, hi);
	range_end(lo, hi);
#ifdef HOLD_WRITE
	up_write();
#else
	up_read();
#endif
end:	false
}

#ifdef S2
active proctype fault1() { fault(1) }
active proctype dontneed04() { dontneed(0, 4) }
#endif
#ifdef S3
active proctype fault1() { fault(1) }
active proctype fault2() { fault(2) }
active proctype munmap04() { munmap(0, 4) }
#endif
#ifdef S4
active [2] proctype fault1() { fault(1) }
active proctype dontneed1() { dontneed(1, 2) }
active proctype munmap04() { munmap(0, 4) }
#endif
#ifdef S5
active [2] proctype fault1() { fault(1) }
active proctype fault2() { fault(2) }
active proctype dontneed1() { dontneed(1, 2) }
active proctype munmap04() { munmap(0, 4) }
#endif
#ifdef S6
active [2] proctype fault1() { fault(1) }
active proctype dontneed1() { dontneed(1, 2) }
active proctype dontneed04() { dontneed(0, 4) }
active proctype munmap04() { munmap(0, 4) }
#endif
