package sqlstore

// Statements gives every statement that the store has run on SQLite so far. It
// waits for running transactions to end.
func (s *Store) Statements() []string {
	e := s.dialect.(*sqliteDialect)
	var conns []*sqliteConn
	conns = append(conns, <-e.writers)
	for range readers {
		conns = append(conns, <-e.views)
	}
	var texts []string
	for _, c := range conns {
		for text := range c.stmts {
			texts = append(texts, text)
		}
		c.home <- c
	}
	return texts
}
