package main

import (
	"fmt"
	"os"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"
)

func newManCommand() *cobra.Command {
	var dir string
	man := &cobra.Command{
		Use:   "man",
		Short: "Write the man pages",
		Example: "  twtrace man | man -l -\n" +
			"  twtrace man --dir /usr/local/share/man/man8",
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root := cmd.Root()
			root.DisableAutoGenTag = true
			header := &doc.GenManHeader{Title: "TWTRACE", Section: "8", Source: "twtrace " + version(), Manual: "System Administration"}
			if dir == "" {
				return doc.GenMan(root, header, cmd.OutOrStdout())
			}
			if info, err := os.Stat(dir); err != nil || !info.IsDir() {
				return fmt.Errorf("write the man pages: %s is not a directory", dir)
			}
			if err := doc.GenManTree(root, header, dir); err != nil {
				return fmt.Errorf("write the man pages: %w", err)
			}
			return nil
		},
	}
	man.Flags().StringVar(&dir, "dir", "", "write a page for each command into this `directory`, instead of the first to stdout")
	return man
}
