package architecture

import (
	"go/ast"
	"go/token"
	"slices"
	"strings"
)

// A package variable is allowed if nothing can change it. Those are:
//
//	var _ Port = (*T)(nil)              an assertion for the compiler
//	//go:embed ... before it            contents of a file
//	errors.New, fmt.Errorf              a sentinel
//	constructors below                  a value without state
//	T{...}, []T{...}, map[K]V{...}      a table, as long as no line of the package
//	                                    assigns to it, takes its address, or clears it
//
// and never something out of sync or sync/atomic, which exists to be changed.
var constructors = map[string][]string{
	"encoding/base32": {"NewEncoding"},
	"encoding/base64": {"NewEncoding"},
	"errors":          {"New"},
	"fmt":             {"Errorf"},
	"regexp":          {"MustCompile"},
	"strings":         {"NewReplacer"},
}

// checkVariables refuses package variables that something can change. It takes
// the files of one package together, since one may change another's variable.
func checkVariables(files []*file) []string {
	var faults []string
	tables := map[string]bool{}
	for _, f := range files {
		for _, declaration := range f.syntax.Decls {
			group, ok := declaration.(*ast.GenDecl)
			if !ok || group.Tok != token.VAR {
				continue
			}
			for _, spec := range group.Specs {
				value := spec.(*ast.ValueSpec)
				if isEmbed(group.Doc) || isEmbed(value.Doc) {
					continue
				}
				for i, name := range value.Names {
					if name.Name == "_" {
						continue
					}
					tables[name.Name] = true
					if len(value.Values) != len(value.Names) || !f.isConstant(value.Values[i]) {
						faults = append(faults, f.fault(name.Pos(), "%s is a mutable package variable: pass it in, or make it one of what variables_test.go lists", name.Name))
					}
				}
			}
		}
	}
	for _, f := range files {
		faults = append(faults, f.checkWrites(tables)...)
	}
	return faults
}

// isConstant says whether an initializer gives something that stays as it is.
func (f *file) isConstant(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.CompositeLit:
		return !f.isSync(e.Type)
	case *ast.UnaryExpr: // &T{...}
		return e.Op == token.AND && f.isConstant(e.X)
	case *ast.CallExpr:
		if conversion, ok := e.Fun.(*ast.ArrayType); ok && conversion.Len == nil { // []byte("...")
			return true
		}
		// A method that only makes another value: base32.NewEncoding(...).WithPadding(...).
		if method, ok := e.Fun.(*ast.SelectorExpr); ok {
			switch x := method.X.(type) {
			case *ast.CallExpr:
				return f.isConstant(x)
			case *ast.Ident:
				return slices.Contains(constructors[f.packageOf(x)], method.Sel.Name)
			case *ast.SelectorExpr: // base32.HexEncoding.WithPadding(...)
				return strings.HasPrefix(f.packageOf(x.X), "encoding/base")
			}
		}
		return false
	default:
		return false
	}
}

// isSync says whether a type, or what it is made of, is out of sync.
func (f *file) isSync(e ast.Expr) bool {
	found := false
	ast.Inspect(e, func(n ast.Node) bool {
		if selector, ok := n.(*ast.SelectorExpr); ok {
			found = found || isBelow(f.packageOf(selector.X), "sync")
		}
		return !found
	})
	return found
}

// checkWrites refuses lines that change a package variable.
func (f *file) checkWrites(variables map[string]bool) []string {
	var faults []string
	refuse := func(target ast.Expr) {
		name := root(target)
		if name == nil || !variables[name.Name] || f.isLocal(name) {
			return
		}
		faults = append(faults, f.fault(name.Pos(), "%s is a package variable and is changed here", name.Name))
	}
	ast.Inspect(f.syntax, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.AssignStmt:
			if n.Tok != token.DEFINE {
				for _, target := range n.Lhs {
					refuse(target)
				}
			}
		case *ast.RangeStmt:
			if n.Tok == token.ASSIGN {
				refuse(n.Key)
				refuse(n.Value)
			}
		case *ast.IncDecStmt:
			refuse(n.X)
		case *ast.UnaryExpr:
			if n.Op == token.AND {
				refuse(n.X)
			}
		case *ast.CallExpr:
			if builtin, ok := n.Fun.(*ast.Ident); ok && len(n.Args) > 0 && slices.Contains([]string{"clear", "copy", "delete"}, builtin.Name) {
				refuse(n.Args[0])
			}
		}
		return true
	})
	return faults
}

// root is the variable that an expression such as x.f[1].g leads to.
func root(e ast.Expr) *ast.Ident {
	for {
		switch x := e.(type) {
		case *ast.Ident:
			return x
		case *ast.SelectorExpr:
			e = x.X
		case *ast.IndexExpr:
			e = x.X
		case *ast.SliceExpr:
			e = x.X
		case *ast.StarExpr:
			e = x.X
		case *ast.ParenExpr:
			e = x.X
		default:
			return nil
		}
	}
}

// isLocal says whether a name is declared inside a function. A name that is not
// resolved is declared in another file of the package.
func (f *file) isLocal(name *ast.Ident) bool {
	object := f.uses[name]
	return object != nil && object.Pkg() != nil && object.Parent() != object.Pkg().Scope()
}

func isEmbed(doc *ast.CommentGroup) bool {
	if doc == nil {
		return false
	}
	return slices.ContainsFunc(doc.List, func(c *ast.Comment) bool { return strings.HasPrefix(c.Text, "//go:embed ") })
}
