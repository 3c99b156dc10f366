package pacer

// waiters is the queue of background calls that wait, first come first served: a
// doubly linked list, since one that gives up leaves from the middle. Nodes that
// left are kept for the next to come, so that waiting allocates nothing in the
// long run. The Pacer's mutex guards it.
type waiters struct {
	first, last *waiter
	length      int
	unused      *waiter // linked by next
}

// A waiter is told on admitted, which holds one value, in which round it was let
// in.
type waiter struct {
	admitted   chan uint64
	prev, next *waiter
}

func (q *waiters) push() *waiter {
	w := q.unused
	if w == nil {
		w = &waiter{admitted: make(chan uint64, 1)}
	} else {
		q.unused = w.next
	}
	w.prev, w.next = q.last, nil
	if q.last == nil {
		q.first = w
	} else {
		q.last.next = w
	}
	q.last = w
	q.length++
	return w
}

// pop takes the first, or nil from an empty queue.
func (q *waiters) pop() *waiter {
	w := q.first
	if w != nil {
		q.remove(w)
	}
	return w
}

func (q *waiters) remove(w *waiter) {
	if w.prev == nil {
		q.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		q.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	w.prev, w.next = nil, nil
	q.length--
}

// reuse keeps a waiter that is in no queue and whose channel is empty.
func (q *waiters) reuse(w *waiter) {
	w.next = q.unused
	q.unused = w
}
