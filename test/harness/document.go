package harness

import (
	"fmt"
	"os"
	"strings"
)

// Document gives the code block of a Markdown file that follows the line
// <!-- NAME -->, so that what people copy is what tests run.
func Document(file, name string) (string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return "", err
	}
	_, rest, found := strings.Cut(string(text), "\n<!-- "+name+" -->\n```")
	_, rest, fenced := strings.Cut(rest, "\n")
	block, _, closed := strings.Cut(rest, "\n```\n")
	if !found || !fenced || !closed {
		return "", fmt.Errorf("%s has no code block after <!-- %s -->", file, name)
	}
	return block, nil
}
