// Package architecture checks that the sources keep to the floor plan: who may
// import whom, and where clock, environment and chance may come from.
//
// It reads the files itself. A test that ran `go list` would be answered from
// Go's test cache, which does not see what a child process reads.
package architecture

import (
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"go/types"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// maxLines is how long a file may get before it holds more than one thought.
const maxLines = 500

// Folders of the repository that are no rooms: tests may wire anything, and
// foreign schemas are not ours.
var noRooms = []string{"test", "third_party", "bin"}

func TestSourcesKeepToTheFloorPlan(t *testing.T) {
	root := filepath.Join("..", "..")
	sources := map[string]string{}
	if err := readSources(root, "", sources); err != nil {
		t.Fatal(err)
	}
	if len(sources) < 5 {
		t.Fatalf("found %d Go files below %s: this test looks in the wrong place", len(sources), root)
	}
	for _, fault := range check(sources) {
		t.Error(fault)
	}
}

// readSources reads the Go files of the rooms below dir, tests left out, by
// their slash-separated paths from root.
func readSources(root, dir string, into map[string]string) error {
	entries, err := os.ReadDir(filepath.Join(root, dir))
	if err != nil {
		return err
	}
	for _, entry := range entries {
		name := path.Join(dir, entry.Name())
		switch {
		case strings.HasPrefix(entry.Name(), ".") || entry.Name() == "testdata" || slices.Contains(noRooms, name):
		case entry.IsDir():
			if err := readSources(root, name, into); err != nil {
				return err
			}
		case strings.HasSuffix(name, ".go") && !strings.HasSuffix(name, "_test.go"):
			source, err := os.ReadFile(filepath.Join(root, name))
			if errors.Is(err, os.ErrNotExist) {
				continue // somebody is just editing
			}
			if err != nil {
				return err
			}
			into[name] = string(source)
		}
	}
	return nil
}

// check gives the faults of Go files, by path, one line each.
func check(sources map[string]string) []string {
	var faults []string
	files := map[string][]*file{} // by folder
	for _, name := range slices.Sorted(maps.Keys(sources)) {
		dir := path.Dir(name)
		r, ok := roomOf(dir)
		if !ok {
			faults = append(faults, fmt.Sprintf("%s: %s is no room of the floor plan; enter it in rooms_test.go", name, dir))
			continue
		}
		f, err := parse(name, sources[name])
		if err != nil {
			faults = append(faults, err.Error())
			continue
		}
		faults = append(faults, f.checkImports(r)...)
		faults = append(faults, f.checkCalls(r)...)
		if !f.generated {
			faults = append(faults, f.checkShape(sources[name])...)
			files[dir] = append(files[dir], f)
		}
	}
	for _, dir := range slices.Sorted(maps.Keys(files)) {
		faults = append(faults, checkVariables(files[dir])...)
	}
	return faults
}

// A file is one parsed source.
type file struct {
	set       *token.FileSet
	syntax    *ast.File
	generated bool
	// What names in it mean. Types of other packages are unknown, which is no
	// hindrance to telling a package from a variable and a local from a global.
	uses map[*ast.Ident]types.Object
}

func parse(name, source string) (*file, error) {
	f := &file{set: token.NewFileSet(), uses: map[*ast.Ident]types.Object{}}
	var err error
	if f.syntax, err = parser.ParseFile(f.set, name, source, parser.ParseComments|parser.SkipObjectResolution); err != nil {
		return nil, err
	}
	f.generated = ast.IsGenerated(f.syntax)
	lenient := types.Config{Error: func(error) {}, Importer: noImporter{}}
	// Errors are certain, since nothing is imported; what is resolved is enough.
	_, _ = lenient.Check(path.Dir(name), f.set, []*ast.File{f.syntax}, &types.Info{Uses: f.uses})
	return f, nil
}

// noImporter lets the type checker go on with packages that it knows by name only.
type noImporter struct{}

func (noImporter) Import(imported string) (*types.Package, error) {
	name := path.Base(imported)
	if name == "v2" || name == "v3" || name == "v5" {
		name = path.Base(path.Dir(imported))
	}
	empty := types.NewPackage(imported, name)
	empty.MarkComplete()
	return empty, nil
}

// packageOf is the import path that a name stands for; empty if it is no package.
func (f *file) packageOf(e ast.Expr) string {
	if name, ok := e.(*ast.Ident); ok {
		if p, ok := f.uses[name].(*types.PkgName); ok {
			return p.Imported().Path()
		}
	}
	return ""
}

func (f *file) fault(at token.Pos, format string, args ...any) string {
	return fmt.Sprintf("%s: %s", f.set.Position(at), fmt.Sprintf(format, args...))
}

// checkImports refuses packages that the room may not know.
func (f *file) checkImports(r room) []string {
	var faults []string
	for _, spec := range f.syntax.Imports {
		imported, _ := strconv.Unquote(spec.Path.Value)
		switch {
		case slices.Contains(everyRandom, imported):
			if !slices.Contains(r.random, imported) {
				faults = append(faults, f.fault(spec.Pos(), "%s must not import %s: chance is injected", r.dir, imported))
			}
		case !r.mayImport(imported):
			faults = append(faults, f.fault(spec.Pos(), "%s must not import %s", r.dir, imported))
		}
		if spec.Name != nil && spec.Name.Name == "." {
			faults = append(faults, f.fault(spec.Pos(), "dot import of %s hides where names come from", imported))
		}
	}
	return faults
}

// Functions that reach for the world, by import path.
var (
	clockFunctions = map[string][]string{"time": {"Now", "Since", "Until"}}
	envFunctions   = map[string][]string{
		"os":      {"Getenv", "LookupEnv", "Environ", "ExpandEnv"},
		"syscall": {"Getenv", "Environ"},
	}
)

// checkCalls refuses clock and environment outside the rooms that own them,
// also where the function is only passed on.
func (f *file) checkCalls(r room) []string {
	var faults []string
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		selector, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		imported := f.packageOf(selector.X)
		if !r.clock && slices.Contains(clockFunctions[imported], selector.Sel.Name) {
			faults = append(faults, f.fault(selector.Pos(), "%s must not use %s.%s: time is injected", r.dir, imported, selector.Sel.Name))
		}
		if !r.env && slices.Contains(envFunctions[imported], selector.Sel.Name) {
			faults = append(faults, f.fault(selector.Pos(), "%s must not use %s.%s: configuration is read in cmd", r.dir, imported, selector.Sel.Name))
		}
		return true
	})
	return faults
}

// checkShape refuses init functions and files that are too long.
func (f *file) checkShape(source string) []string {
	var faults []string
	if lines := strings.Count(source, "\n"); lines > maxLines {
		faults = append(faults, f.fault(f.syntax.Package, "%d lines, more than %d: split it by thought", lines, maxLines))
	}
	for _, declaration := range f.syntax.Decls {
		if function, ok := declaration.(*ast.FuncDecl); ok && function.Recv == nil && function.Name.Name == "init" {
			faults = append(faults, f.fault(function.Pos(), "init runs unasked: call it from where it is needed"))
		}
	}
	return faults
}
