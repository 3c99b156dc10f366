package pacer

import (
	"container/heap"
	"math"
)

// fairQueue is the background calls that wait, in lines: one for each flow, first
// come first served. Between the lines it is start-time fair queueing (Goyal,
// Vin, Cheng, SIGCOMM 1996), each call of cost 1: the line whose next call would
// have started first, had each had its part of the budget, is served. So a flow
// with weight w among flows of total weight W gets at least w of every W
// admissions, give or take one of each other flow, however many wait.
//
// The lane's mutex guards it.
type fairQueue struct {
	lines  map[string]*line
	ready  lineHeap // the lines in which somebody waits
	now    float64  // virtual time: the start of the call served last
	length int
	unused *waiter // for the next to come, linked by next: waiting allocates nothing in the long run
}

// A line is the waiting calls of one flow.
type line struct {
	id          string
	weights     map[float64]int // how many calls of each weight wait
	start       float64         // virtual time at which the next call would have started
	first, last *waiter
	place       int // in the heap; -1 outside
}

// A waiter is told on admitted, which holds one value, in which round it was let
// in.
type waiter struct {
	admitted   chan uint64
	weight     float64
	line       *line
	prev, next *waiter
}

func (q *fairQueue) push(f *Flow) *waiter {
	w := q.unused
	if w == nil {
		w = &waiter{admitted: make(chan uint64, 1)}
	} else {
		q.unused = w.next
	}
	id, weight := "", 1.0 // calls without a flow share a line
	if f != nil {
		id, weight = f.id, math.Float64frombits(f.weight.Load())
	}
	n := q.lineOf(id)
	w.line, w.weight, w.prev, w.next = n, weight, n.last, nil
	n.weights[weight]++
	if n.last == nil {
		n.first = w
		n.start = max(n.start, q.now) // what it did not use is not saved up
		heap.Push(&q.ready, n)
	} else {
		n.last.next = w
	}
	n.last = w
	q.length++
	return w
}

func (q *fairQueue) lineOf(id string) *line {
	n := q.lines[id]
	if n == nil {
		if q.lines == nil {
			q.lines = map[string]*line{}
		}
		q.forget()
		n = &line{id: id, weights: map[float64]int{}, start: q.now, place: -1}
		q.lines[id] = n
	}
	return n
}

// weight is the largest of those that wait, whichever of them is served: what else
// its tenant does takes nothing from a job of high priority.
func (n *line) weight() float64 {
	most := 0.0
	for w := range n.weights {
		most = max(most, w)
	}
	return most
}

// pop takes the call whose turn it is, from a queue that is not empty.
func (q *fairQueue) pop() *waiter {
	n := q.ready[0]
	w := n.first
	q.now = n.start
	n.start += 1 / n.weight()
	q.remove(w)
	if n.first != nil {
		heap.Fix(&q.ready, n.place)
	}
	return w
}

// remove takes a call out of its line. Where it gave up, the line stands as if it
// had never come.
func (q *fairQueue) remove(w *waiter) {
	n := w.line
	if w.prev == nil {
		n.first = w.next
	} else {
		w.prev.next = w.next
	}
	if w.next == nil {
		n.last = w.prev
	} else {
		w.next.prev = w.prev
	}
	if n.weights[w.weight]--; n.weights[w.weight] == 0 {
		delete(n.weights, w.weight)
	}
	w.prev, w.next, w.line = nil, nil, nil
	q.length--
	if n.first == nil {
		heap.Remove(&q.ready, n.place)
	}
}

// forget drops lines that nobody stands in and that would begin where a new one
// does.
func (q *fairQueue) forget() {
	for id, n := range q.lines {
		if n.first == nil && n.start <= q.now {
			delete(q.lines, id)
		}
	}
}

// reuse keeps a waiter that is in no line and whose channel is empty.
func (q *fairQueue) reuse(w *waiter) {
	w.next = q.unused
	q.unused = w
}

// lineHeap is the lines by their next start.
type lineHeap []*line

// Len implements heap.Interface.
func (h lineHeap) Len() int { return len(h) }

// Less implements heap.Interface.
func (h lineHeap) Less(i, j int) bool {
	if h[i].start != h[j].start {
		return h[i].start < h[j].start
	}
	return h[i].id < h[j].id
}

// Swap implements heap.Interface.
func (h lineHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].place, h[j].place = i, j
}

// Push implements heap.Interface.
func (h *lineHeap) Push(x any) {
	n := x.(*line)
	n.place = len(*h)
	*h = append(*h, n)
}

// Pop implements heap.Interface.
func (h *lineHeap) Pop() any {
	last := len(*h) - 1
	n := (*h)[last]
	(*h)[last] = nil
	*h = (*h)[:last]
	n.place = -1
	return n
}
