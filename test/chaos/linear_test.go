//go:build unix

package chaos_test

import (
	"cmp"
	"fmt"
	"math"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/anishathalye/porcupine"
)

// Whoever reads and writes one data key sees a single row with a single order
// of events, whatever moves it to another KMS key meanwhile, and whichever
// replica answers. That is linearizability, checked row by row: the clients
// record what they asked and were told, and when; porcupine looks for an order.

// An act is what a client asks of a row.
type act string

const (
	actCreate  act = "create"
	actRead    act = "read"
	actReplace act = "replace" // by an import with the etag that came with a value
	actDelete  act = "delete"
)

// A linearInput is a call. Values are the request_ids of the calls that wrote
// them, which the rows carry in their contexts.
type linearInput struct {
	row     string
	act     act
	value   string // that is written
	expects string // by a replace: the value whose etag it sends
}

// A linearOutput is how a call ended.
type linearOutput struct {
	says  answer
	value string // that was read
}

type answer string

const (
	saysDone    answer = "done"
	saysAbsent  answer = "absent"
	saysExists  answer = "exists"
	saysDeleted answer = "deleted" // the id is never given out again
	saysStale   answer = "stale"   // etag: the row may have been moved only
	saysRefused answer = "refused" // for the sake of a KMS key: nothing was done
	saysUnknown answer = "unknown" // the answer never came: done, to be done, or never
)

// A rowState is one row: never made, there with a value, or deleted.
type rowState struct {
	there, deleted bool
	value          string
}

// step tells whether a row may answer so, and what it is then.
//
// A call without an answer has an interval without an end, and an effect where
// it finds one to have: put behind everything that anybody saw, it is the same
// as one that never came.
func (s rowState) step(in linearInput, out linearOutput) (bool, rowState) {
	after, legal := s, false
	switch in.act {
	case actCreate:
		if legal = !s.there && !s.deleted; legal {
			after = rowState{there: true, value: in.value}
		}
	case actReplace:
		if legal = s.there && s.value == in.expects; legal {
			after.value = in.value
		}
	case actDelete:
		if legal = s.there; legal {
			after = rowState{deleted: true}
		}
	case actRead:
		legal = s.there && s.value == out.value
	}
	switch out.says {
	case saysDone:
		return legal, after
	case saysUnknown:
		return true, after
	case saysAbsent:
		return !s.there, s
	case saysExists:
		return s.there, s
	case saysDeleted:
		return s.deleted, s
	case saysStale:
		return s.there, s
	case saysRefused:
		return true, s
	}
	return false, s
}

func rowModel() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return rowState{} },
		Step: func(state, input, output any) (bool, any) {
			return state.(rowState).step(input.(linearInput), output.(linearOutput))
		},
	}
}

// A history is what the clients of some rows recorded. It is safe for
// concurrent use.
type history struct {
	begun time.Time
	mu    sync.Mutex
	rows  map[string][]porcupine.Operation
}

func newHistory() *history {
	return &history{begun: time.Now(), rows: map[string][]porcupine.Operation{}}
}

// now is the recorder's clock, which never goes back.
func (h *history) now() int64 { return int64(time.Since(h.begun)) }

// add records a call that began at call and has ended just now. One without an
// answer has not ended; of a read that says nothing at all.
func (h *history) add(client int, call int64, in linearInput, out linearOutput) {
	ended := h.now()
	if out.says == saysUnknown {
		if in.act == actRead {
			return
		}
		ended = math.MaxInt64
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.rows[in.row] = append(h.rows[in.row], porcupine.Operation{ClientId: client, Input: in, Call: call, Output: out, Return: ended})
}

// A verdict is what the history comes to.
type verdict struct {
	rows, calls, open int
	wrong             []string // rows that no order explains, with their calls
}

// linearBound is far above what a row of some dozens of calls takes: within it
// each has been decided.
const linearBound = 30 * time.Second

func (h *history) check() verdict {
	h.mu.Lock()
	defer h.mu.Unlock()
	v := verdict{rows: len(h.rows)}
	for row, calls := range h.rows {
		v.calls += len(calls)
		for _, c := range calls {
			if c.Output.(linearOutput).says == saysUnknown {
				v.open++
			}
		}
		if result := porcupine.CheckOperationsTimeout(rowModel(), calls, linearBound); result != porcupine.Ok {
			v.wrong = append(v.wrong, fmt.Sprintf("%s: %s, no order of its calls explains\n%s", row, result, describe(calls)))
		}
	}
	return v
}

func describe(calls []porcupine.Operation) string {
	var b strings.Builder
	byTime := func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) }
	for _, c := range slices.SortedFunc(slices.Values(calls), byTime) {
		in, out := c.Input.(linearInput), c.Output.(linearOutput)
		until := "open"
		if c.Return != math.MaxInt64 {
			until = time.Duration(c.Return).String()
		}
		fmt.Fprintf(&b, "  client %d, %v to %s: %s %s %s -> %s %s\n",
			c.ClientId, time.Duration(c.Call), until, in.act, in.value, in.expects, out.says, out.value)
	}
	return b.String()
}

// spoilings is how many kinds of copies spoiled gives of a history in which rows
// were created, read and deleted.
const spoilings = 3

// spoiled gives copies of a history that no store could have given, by what is
// wrong with them.
func (h *history) spoiled() map[string]*history {
	h.mu.Lock()
	defer h.mu.Unlock()
	all := map[string]*history{}
	change := func(what, row string, calls []porcupine.Operation) {
		all[what] = &history{rows: map[string][]porcupine.Operation{row: calls}}
	}
	for row, calls := range h.rows {
		for i, c := range calls {
			in, out := c.Input.(linearInput), c.Output.(linearOutput)
			if out.says != saysDone {
				continue
			}
			switch in.act {
			case actCreate:
				change("a row that was created twice", row, append(slices.Clone(calls), c))
			case actRead:
				written := func(w porcupine.Operation) bool { return w.Input.(linearInput).value == out.value }
				change("a value that nobody wrote", row, slices.DeleteFunc(slices.Clone(calls), written))
			case actDelete:
				later := c
				later.Call, later.Return = math.MaxInt64-2, math.MaxInt64-1
				later.Input = linearInput{row: row, act: actRead}
				later.Output = linearOutput{says: saysDone, value: "back"}
				change("a row that came back", row, append(slices.Clone(calls[:i+1]), later))
			}
		}
	}
	return all
}

// The checker accepts what one row could have done and nothing else.
func TestRowsAreJudgedByTheirHistories(t *testing.T) {
	const open = math.MaxInt64
	call := func(from, to int64, a act, value, expects string, says answer, read string) porcupine.Operation {
		return porcupine.Operation{Call: from, Return: to, Input: linearInput{row: "r", act: a, value: value, expects: expects},
			Output: linearOutput{says: says, value: read}}
	}
	create := call(1, 2, actCreate, "a", "", saysDone, "")
	read := func(from, to int64, value string) porcupine.Operation {
		return call(from, to, actRead, "", "", saysDone, value)
	}
	replace := func(from, to int64, value, expects string, says answer) porcupine.Operation {
		return call(from, to, actReplace, value, expects, says, "")
	}
	for _, tc := range []struct {
		name  string
		calls []porcupine.Operation
		legal bool
	}{
		{"a life", []porcupine.Operation{create, read(3, 4, "a"), replace(5, 6, "b", "a", saysDone), read(7, 8, "b"),
			call(9, 10, actDelete, "", "", saysDone, ""), call(11, 12, actRead, "", "", saysAbsent, ""), call(13, 14, actCreate, "c", "", saysDeleted, "")}, true},
		{"a read beside a write sees either", []porcupine.Operation{create, replace(3, 9, "b", "a", saysDone), read(4, 5, "a"), read(6, 7, "b")}, true},
		{"and not one after the other's end", []porcupine.Operation{create, replace(3, 9, "b", "a", saysDone), read(4, 5, "b"), read(6, 7, "a")}, false},
		{"a lost write", []porcupine.Operation{create, call(3, 4, actRead, "", "", saysAbsent, "")}, false},
		{"a write undone by a move", []porcupine.Operation{create, replace(3, 4, "b", "a", saysDone), read(5, 6, "a")}, false},
		{"one etag, two replacements", []porcupine.Operation{create, replace(3, 6, "b", "a", saysDone), replace(4, 5, "c", "a", saysDone)}, false},
		{"one of them refused", []porcupine.Operation{create, replace(3, 6, "b", "a", saysDone), replace(4, 5, "c", "a", saysStale), read(7, 8, "b")}, true},
		{"an id given out twice", []porcupine.Operation{create, call(3, 4, actDelete, "", "", saysDone, ""), call(5, 6, actCreate, "b", "", saysDone, "")}, false},
		{"an unknown write that came", []porcupine.Operation{create, replace(3, open, "b", "a", saysUnknown), read(5, 6, "a"), read(7, 8, "b")}, true},
		{"that never came", []porcupine.Operation{create, replace(3, open, "b", "a", saysUnknown), read(5, 6, "a"), read(7, 8, "a")}, true},
		{"that came and went", []porcupine.Operation{create, replace(3, open, "b", "a", saysUnknown), read(5, 6, "b"), read(7, 8, "a")}, false},
		{"an unknown deletion that came", []porcupine.Operation{create, call(3, open, actDelete, "", "", saysUnknown, ""), read(5, 6, "a"), call(7, 8, actRead, "", "", saysAbsent, "")}, true},
		{"read before it was asked for", []porcupine.Operation{create, read(3, 4, "b"), replace(5, 6, "b", "a", saysDone)}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := &history{rows: map[string][]porcupine.Operation{"r": tc.calls}}
			if v := h.check(); (len(v.wrong) == 0) != tc.legal {
				t.Errorf("legal: %v, want %v: %v", len(v.wrong) == 0, tc.legal, v.wrong)
			}
		})
	}
}
