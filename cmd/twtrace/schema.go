package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"github.com/twtrace/twtrace/internal/record"
)

func newSchemaCommand() *cobra.Command {
	return &cobra.Command{
		Use:     "schema",
		Short:   "Print the JSON Schema of the event log",
		Example: "  twtrace schema > twtrace-1.schema.json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			_, err := fmt.Fprint(cmd.OutOrStdout(), record.Schema())
			return err
		},
	}
}
