package harness

import (
	"context"
	"database/sql"
	"fmt"
	"slices"
	"strings"

	_ "github.com/jackc/pgx/v5/stdlib" // the tables are read past the store
	_ "modernc.org/sqlite"
)

// A reader looks into the database beside the store. It is not safe for
// concurrent use.
type reader struct {
	driver, source string
	versionText    string // a query whose answer changes with each commit
	tablesText     string

	conn    *sql.Conn
	version string
	rows    []string // as they were in that version
}

// Rows gives every row of the database but those of the tables left out, each as
// one line that begins with its table's name, in a fixed order.
func (b *Bench) Rows(ctx context.Context, leaveOut ...string) ([]string, error) {
	if err := b.openReader(ctx); err != nil {
		return nil, err
	}
	if err := b.reader.refresh(ctx); err != nil {
		return nil, err
	}
	return slices.DeleteFunc(slices.Clone(b.reader.rows), func(row string) bool {
		table, _, _ := strings.Cut(row, ": ")
		return slices.Contains(leaveOut, table)
	}), nil
}

// Count gives the number of rows of a table.
func (b *Bench) Count(ctx context.Context, table string) (n int, err error) {
	if err := b.openReader(ctx); err != nil {
		return 0, err
	}
	err = b.reader.conn.QueryRowContext(ctx, `select count(*) from `+table).Scan(&n)
	return n, err
}

func (b *Bench) openReader(ctx context.Context) error {
	if b.reader.conn != nil {
		return nil
	}
	db, err := sql.Open(b.reader.driver, b.reader.source)
	if err != nil {
		return err
	}
	b.close = append(b.close, db.Close)
	if b.reader.conn, err = db.Conn(ctx); err != nil {
		return err
	}
	b.close = append(b.close, b.reader.conn.Close)
	return nil
}

func (r *reader) refresh(ctx context.Context) error {
	version, err := r.read(ctx, r.versionText)
	if err != nil || version[0] == r.version {
		return err
	}
	tables, err := r.read(ctx, r.tablesText)
	if err != nil {
		return err
	}
	r.rows = nil
	for _, table := range tables {
		lines, err := r.read(ctx, `select * from `+table)
		if err != nil {
			return err
		}
		for _, line := range lines {
			r.rows = append(r.rows, table+": "+line)
		}
	}
	slices.Sort(r.rows)
	r.version = version[0]
	return nil
}

// read gives each row of a query as one line.
func (r *reader) read(ctx context.Context, query string) (lines []string, err error) {
	rows, err := r.conn.QueryContext(ctx, query)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	columns, err := rows.Columns()
	if err != nil {
		return nil, err
	}
	values := make([]any, len(columns))
	into := make([]any, len(columns))
	for i := range values {
		into[i] = &values[i]
	}
	for rows.Next() {
		if err := rows.Scan(into...); err != nil {
			return nil, err
		}
		fields := make([]string, len(values))
		for i, v := range values {
			fields[i] = fmt.Sprint(v)
		}
		lines = append(lines, strings.Join(fields, " "))
	}
	return lines, rows.Err()
}
