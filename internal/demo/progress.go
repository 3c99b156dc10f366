package demo

import (
	"fmt"
	"io"
	"sort"
	"strconv"
	"strings"
	"sync"
	"time"
)

// story is what people read. It is safe for concurrent use.
type story struct {
	out      io.Writer
	terminal bool
	now      func() time.Time

	mu    sync.Mutex
	drawn bool // a line is on the terminal that the next one replaces
}

func newStory(out io.Writer, terminal bool, now func() time.Time) *story {
	return &story{out: out, terminal: terminal, now: now}
}

// whoWidth is the room for who acts, before what it does.
const whoWidth = 10

func (s *story) title(c Config, st state) {
	s.print("Change a tenant's KMS key while writes go on.")
	s.print("")
	if st.Own.given() {
		s.say("customer", "account %s: owns the KMS keys", c.Customer.id())
		s.say("service", "a role of its own: seals and opens files; unwraps data keys at KMS")
		s.say("broker", "two roles of its own: keeps wrapped data keys, and can unwrap none")
	} else {
		s.say("customer", "account %s: owns the KMS keys, and runs a legacy service", c.Customer.id())
		s.say("service", "account %s: seals and opens files; unwraps data keys at KMS by its own role", c.Service.id())
		s.say("broker", "an account of its own: keeps wrapped data keys, and can unwrap none")
	}
	if st.Stage != StageDomain {
		s.print("")
		s.print("Going on where the last run stopped, at stage " + string(st.Stage) + ".")
	}
	s.print("")
}

// say tells what somebody did. Further lines of the text are indented.
func (s *story) say(who, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	indent := strings.Repeat(" ", whoWidth)
	s.print(fmt.Sprintf("%-*s%s", whoWidth, who, strings.ReplaceAll(text, "\n", "\n"+indent)))
}

// print writes a line that stays. The output is the terminal's or a file's; when
// it is gone there is nobody to tell.
func (s *story) print(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	_, _ = fmt.Fprintln(s.out, line)
}

// draw writes a line that the next one replaces; only a terminal has those.
func (s *story) draw(line string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.clear()
	_, _ = fmt.Fprint(s.out, line)
	s.drawn = true
}

func (s *story) clear() {
	if s.drawn {
		_, _ = fmt.Fprint(s.out, "\r\x1b[K") // ECMA-48: erase to the end of the line
		s.drawn = false
	}
}

// How often a bar is shown: redrawn on a terminal, or a line of its own.
const (
	redraw   = 100 * time.Millisecond
	nextLine = 2 * time.Second
	barWidth = 24
)

// A bar shows how far something is. It is safe for concurrent use.
type bar struct {
	story *story
	title string
	start time.Time

	mu          sync.Mutex
	done, total int64
	before      int64 // done by earlier starts, of no account for the rate
	shown       time.Time
	lines       int
	note        string
}

func (s *story) bar(title string, total int) *bar {
	now := s.now()
	return &bar{story: s, title: title, start: now, shown: now, total: int64(total)}
}

// resume counts what earlier starts have done.
func (b *bar) resume(n int) *bar {
	b.done, b.before = int64(n), int64(n)
	return b
}

// add counts what was done; the rate is the mean since the bar began.
func (b *bar) add(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done += int64(n)
	now := b.story.now()
	if !b.due(now) {
		return
	}
	rate := 0.0
	if elapsed := now.Sub(b.start).Seconds(); elapsed > 0 {
		rate = float64(b.done-b.before) / elapsed
	}
	b.show(now, rate)
}

// set shows what somebody else has counted.
func (b *bar) set(done, total int64, rate float64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.done, b.total = done, max(done, total)
	if now := b.story.now(); done > 0 && b.due(now) {
		b.show(now, rate)
	}
}

// wait shows what is waited for, in a line of its own unless it was shown last.
func (b *bar) wait(note string) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if note == b.note {
		return
	}
	b.note = note
	line := fmt.Sprintf("%*s%s", whoWidth, "", note)
	if b.story.terminal {
		b.story.draw(line)
		return
	}
	b.story.print(line)
}

// end leaves the full bar in a file that had some of it; a terminal's is
// replaced by what is told next.
func (b *bar) end() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.lines == 0 || b.story.terminal {
		return
	}
	b.done = b.total
	b.story.print(b.line(0))
}

func (b *bar) due(now time.Time) bool {
	wait := nextLine
	if b.story.terminal {
		wait = redraw
	}
	return now.Sub(b.shown) >= wait
}

func (b *bar) show(now time.Time, rate float64) {
	b.shown = now
	b.lines++
	b.note = ""
	line := b.line(rate)
	if b.story.terminal {
		b.story.draw(line)
		return
	}
	b.story.print(line)
}

// line is: title, bar, done and total, rate, time left.
func (b *bar) line(rate float64) string {
	filled := barWidth
	if b.total > 0 {
		filled = int(int64(barWidth) * min(b.done, b.total) / b.total)
	}
	line := fmt.Sprintf("%*s%-11s [%s%s] %s of %s", whoWidth, "", b.title,
		strings.Repeat("#", filled), strings.Repeat(".", barWidth-filled), thousands(b.done), thousands(b.total))
	if rate > 0 && b.done < b.total {
		left := time.Duration(float64(b.total-b.done) / rate * float64(time.Second))
		line += fmt.Sprintf(", %s/s, %s left", thousands(int64(rate)), left.Round(time.Second))
	}
	return line
}

// thousands writes 21500 as 21,500.
func thousands(n int64) string {
	text := strconv.FormatInt(n, 10)
	for i := len(text) - 3; i > 0 && text[i-1] != '-'; i -= 3 {
		text = text[:i] + "," + text[i:]
	}
	return text
}

// short gives the end of a key ARN, which is what tells keys apart.
func short(arn string) string {
	_, id, found := strings.Cut(arn, ":key/")
	if !found || len(id) < 8 {
		return arn
	}
	return "key " + id[:8] + "…"
}

// pairs writes an encryption context for people.
func pairs(m map[string]string) string {
	var all []string
	for key, value := range m {
		all = append(all, key+"="+value)
	}
	sort.Strings(all)
	return strings.Join(all, ", ")
}
